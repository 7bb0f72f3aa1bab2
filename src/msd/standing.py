"""How far each piece of training has come, read from what it leaves behind: manifests, journals, leases, failures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msd.plan import Node, Plan
from msd.store import Manifest, read_json
from msd.training import journal, lease

KINDS = ("tsm", "dm", "adm")


@dataclass(frozen=True)
class Standing:
    """Of one node.

    Attributes:
        state: ``done``; ``running``; ``stopped``, to be gone on with; ``failed``; ``lost``, its process is gone without
            a word; ``waiting``, not begun.
        folder: of its training state; None if there is none.
        done, total: images trained on.
        speed: images per second when last measured.
        job: id of its SLURM job.
        host: the machine it ran on last.
        heartbeat: seconds since its last sign of life.
        error: what it failed of.
    """

    node: Node
    state: str
    folder: Path | None
    done: int
    total: int
    speed: float | None
    job: str | None
    host: str | None
    heartbeat: float | None
    error: str | None


def standing_of(plan: Plan) -> list[Standing]:
    """One for each node that is trained."""
    held = {}
    for folder in (plan.root / "state").glob("*"):
        for path in sorted(folder.glob("lease-*.json"))[-1:]:
            holder = json.loads(path.read_text())
            held[holder.get("work", "")] = (folder, holder, path.stat().st_mtime)
    return [_standing(node, held.get(str(node.manifest))) for node in plan if node.kind in KINDS]


def _standing(node: Node, held: tuple[Path, dict[str, Any], float] | None) -> Standing:
    failure = node.root / "state" / "failures" / f"{node.kind}-{node.digest}.json"
    told = read_json(failure) if failure.exists() else None
    folder, holder, touched = held or (None, {}, None)
    heartbeat = None if touched is None else max(time.time() - touched, 0.0)
    done, total, speed = 0, node.settings["recipe"]["images"], None
    if folder is not None and (folder / "events.jsonl").exists():
        for event in journal.read(folder / "events.jsonl"):
            done = event.get("nimg", done)
            speed = event.get("speed", {}).get("images_per_second", speed)
    if node.manifest.exists():
        state, done = "done", Manifest.read(node.manifest).results["nimg"]
    elif held is not None and not holder.get("released"):
        state = "lost" if _is_gone(holder, heartbeat or 0.0) else "running"
    elif told is not None:
        state = "failed"
    else:
        state = "stopped" if held else "waiting"
    return Standing(
        node=node,
        state=state,
        folder=folder,
        done=done,
        total=total,
        speed=speed,
        job=holder.get("slurm_job"),
        host=holder["machine"][0] if holder else None,
        heartbeat=heartbeat,
        error=f"{told['error']}: {told['what']}" if told and state != "done" else None,
    )


def _is_gone(holder: dict[str, Any], silent_for: float) -> bool:
    if holder["machine"] == lease._myself()["machine"]:
        return not lease._alive(holder["process"])
    return silent_for > lease.SILENCE
