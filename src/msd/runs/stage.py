"""The row of one stage of a student: finished, at hand, stopped or broken off."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from msd.plan import Node, Plan, VariantPlan
from msd.runs.facts import finished, flat, made, origin, surroundings, weights
from msd.runs.row import STATUS, Row
from msd.standing import Standing
from msd.store import Manifest
from msd.training import journal


def stage_row(parent: str, plan: Plan, variant: VariantPlan, standing: Standing, students: list[int]) -> Row:
    """Journals stay where the training was; without one the last point stands for the curve.

    Args:
        parent: key of the variant's row.
        students: numbers of those that go through this stage together.

    Raises:
        DamagedFileError: a manifest is broken.
    """
    node, manifest = standing.node, made(standing.node)
    results = manifest.results if manifest else {}
    events = _events(standing, manifest)
    starts = [e for e in events if e["event"] == "start"]
    ends = [e for e in events if e["event"] == "finish"]
    if manifest:
        end = ends[0]["time"] if ends else finished(manifest)
    else:
        end = events[-1]["time"] if events else time.time() - (standing.heartbeat or 0)
    jobs = [str(e["slurm_job_id"]) for e in starts if e.get("slurm_job_id")] + ([standing.job] if standing.job else [])
    who = ",".join(map(str, students))
    # a replayed update overwrites its first reading
    points = {e["nimg"]: e for e in events if e["event"] == "progress"}
    curves = {nimg: _point(e) for nimg, e in sorted(points.items())}
    if manifest and not events:
        curves = {results["nimg"]: {"nimg": results["nimg"], **results["metrics"]}}
    return Row(
        key=f"{parent}/{node.kind}/student-{who}",
        name=f"{variant.name} {node.kind} student-{who}",
        status=STATUS[standing.state],
        start=starts[0]["time"] if starts else end - results.get("seconds", 0),
        end=end,
        params={
            "variant": variant.name,
            "stage": node.kind,
            "classes": _classes(variant, node),
            **flat(node.settings),
        },
        metrics={name: results.get(name) for name in ("seconds", "parameters", "attempts")},
        tags={
            "msd.variant": variant.name,
            "msd.stage": node.kind,
            "msd.students": who,
            "msd.error": standing.error or "",
            "weights.sha256": manifest.sha256("student") if manifest else None,
            "slurm.job_ids": ",".join(dict.fromkeys(jobs)) or None,
            "host": standing.host,
            **surroundings(plan),
            **({"device": starts[-1]["device"]} if starts and starts[-1].get("device") else {}),
            **origin(manifest),
        },
        curves=curves,
        times={nimg: e["time"] for nimg, e in points.items()},
        artifacts=_artifacts(standing, manifest),
    )


def _events(standing: Standing, manifest: Manifest | None) -> list[dict[str, Any]]:
    if manifest is not None:
        path = manifest.file("journal", verify=False)
    elif standing.folder is not None:
        path = standing.folder / "events.jsonl"
    else:
        return []
    return list(journal.read(path)) if path.exists() else []


def _point(event: dict[str, Any]) -> dict[str, float | None]:
    """What was measured after so many images; MLflow shows names that begin with system/ on a page of their own."""
    speed = {f"system/{name}": value for name, value in event.get("speed", {}).items()}
    return {"nimg": event["nimg"], **event["metrics"], **speed}


def _classes(variant: VariantPlan, node: Node) -> list[int] | None:
    partition = made(variant.partition) if variant.partition else None
    part = node.settings.get("part")
    known = partition.results.get("parts") if partition else None
    return None if known is None or part is None else known[part]


def _artifacts(standing: Standing, manifest: Manifest | None) -> dict[str, Path | str]:
    """Links to the weights, and pictures as far as they are there."""
    pictures = [standing.folder / "diverged.png"] if standing.folder else []
    if manifest is not None and "picture" in manifest.body["files"]:
        pictures.append(manifest.file("picture", verify=False))
    artifacts: dict[str, Path | str] = {path.name: path for path in pictures if path.exists()}
    return artifacts | ({"weights.json": weights(manifest)} if manifest else {})
