"""What a tracker should hold of an experiment, read from its manifests and journals: a row per variant and stage.

Knows no tracker; ``tracking`` brings the rows to MLflow.
"""

from __future__ import annotations

import calendar
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from msd import store
from msd.config import TEACHER, StudentVariant
from msd.plan import Node, Plan, VariantPlan
from msd.store import Manifest
from msd.training import journal


@dataclass(frozen=True)
class Row:
    """One tracked run.

    Attributes:
        key: finds the run again; carries digests, so that changed settings or weights give a new run.
        start, end: unix seconds.
        metrics: final numbers; those that were not measured are None.
        curves: images seen → metrics.
        times: images seen → unix seconds.
        artifacts: name → file, or text.
    """

    key: str
    name: str
    start: float
    end: float
    params: dict[str, Any]
    metrics: dict[str, float | None]
    tags: dict[str, str | None]
    curves: dict[int, dict[str, float]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    artifacts: dict[str, Path | str] = field(default_factory=dict)


def rows_of(plan: Plan, variant: VariantPlan) -> list[Row]:
    """The variant's own row, then one per training node; students that share a node share its row.

    Raises:
        MissingFileError, DamagedFileError: a manifest is missing or broken.
    """
    teacher = Manifest.read(plan.teacher.manifest).sha256("weights")
    students = [Manifest.read(s.last.manifest).sha256("student") for s in variant.students]
    weights = store.digest(students or [teacher], 8)
    key = f"{plan.experiment.experiment}/{variant.name}/{variant.evaluation.digest}-{weights}"
    users: dict[Path, list[int]] = {}
    for k, student in enumerate(variant.students):
        for node in student.stages:
            users.setdefault(node.manifest, []).append(k)
    children = [_stage_row(key, variant, plan.find(path), ks) for path, ks in users.items()]
    return [_variant_row(key, plan, variant, teacher, children), *children]


def _variant_row(key: str, plan: Plan, variant: VariantPlan, teacher: str, children: list[Row]) -> Row:
    evaluation = Manifest.read(variant.evaluation.manifest)
    results, end = evaluation.results, _finished(evaluation)
    latency = Manifest.read(plan.latency.manifest).results["variants"][variant.name]
    counts = ("students", "parameters_per_student", "nfe", "images_per_student", "images_total")
    return Row(
        key=key,
        name=variant.name,
        start=min([row.start for row in children], default=end - results["sampling_seconds"]),
        end=max([end, *(row.end for row in children)]),  # a manifest tells whole seconds only
        params=_variant_params(plan, variant.name),
        metrics={n: results[n] for n in (*counts, "training_seconds", "sampling_seconds") if results[n] is not None}
        | {f"latency_{name}": value for name, value in latency.items() if name.endswith("_ms")}
        | results["metrics"]
        | {f"asked_class_share_of/{c}": v for c, v in enumerate(results["asked_class_share_per_class"])},
        tags={
            "msd.variant": variant.name,
            "data.sha256": Manifest.read(plan.data.manifest).results["sha256"],
            "teacher.sha256": teacher,
            "metric.name": results["metric"]["name"],
            "metric.features_sha256": results["metric"]["features_sha256"],
            "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
            "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
            **_origin(evaluation),
        },
        artifacts=_artifacts(plan, variant),
    )


def _stage_row(parent: str, variant: VariantPlan, node: Node, students: list[int]) -> Row:
    """Journals stay where the training was; without one the last point stands for the curve."""
    manifest = Manifest.read(node.manifest)
    results, path = manifest.results, manifest.file("journal", verify=False)
    events = list(journal.read(path)) if path.exists() else []
    starts = [e for e in events if e["event"] == "start"]
    ends = [e["time"] for e in events if e["event"] == "finish"] or [_finished(manifest)]
    who = ",".join(map(str, students))
    return Row(
        key=f"{parent}/{node.kind}/student-{who}",
        name=f"{node.kind} student-{who}",
        start=starts[0]["time"] if starts else ends[0] - results["seconds"],
        end=ends[0],
        params={"variant": variant.name, "stage": node.kind, "classes": results["part"], **_flat(node.settings)},
        metrics={name: results[name] for name in ("nimg", "seconds", "parameters", "attempts")},
        tags={
            "msd.variant": variant.name,
            "msd.stage": node.kind,
            "msd.students": who,
            "weights.sha256": manifest.sha256("student"),
            "slurm.job_ids": ",".join(dict.fromkeys(str(e["slurm_job_id"]) for e in starts if e.get("slurm_job_id"))),
            **_origin(manifest),
        },
        curves=journal.metrics(path) if events else {results["nimg"]: results["metrics"]},
        times={e["nimg"]: e["time"] for e in events if e["event"] == "progress"},
    )


def _variant_params(plan: Plan, name: str) -> dict[str, Any]:
    """The variant's settings and the recipe, network and evaluation it uses, under the keys of params.yaml."""
    experiment = plan.experiment
    variant = experiment.variants[name]
    used: dict[str, Any] = {
        "variant": name,
        "seed": experiment.seed,
        **variant.model_dump(mode="json", exclude={"recipe"}),
        "evaluation": experiment.evaluation.model_dump(mode="json", exclude={"features", "judge"}),
    }
    if isinstance(variant, StudentVariant):
        small = variant.network != TEACHER
        stages = {*variant.stages, *(["tsm"] if small else [])}
        used["recipe"] = experiment.recipe_of(variant).model_dump(mode="json", include=stages)
        if small:
            used[f"networks.{variant.network}"] = experiment.networks[variant.network].model_dump(mode="json")
    return _flat(used)


def _artifacts(plan: Plan, variant: VariantPlan) -> dict[str, Path | str]:
    """The configuration with this variant alone, its partition, and the report's files as far as they are there."""
    resolved = plan.experiment.model_dump(mode="json")
    resolved["variants"] = {variant.name: resolved["variants"][variant.name]}
    artifacts: dict[str, Path | str] = {"params.yaml": yaml.safe_dump(resolved, sort_keys=False)}
    if variant.partition is not None:
        artifacts["partition.json"] = Manifest.read(variant.partition.manifest).file("partition")
    for name in ("ablation.csv", "report.html", "figures/overview.png", f"figures/gallery-{variant.name}.png"):
        path = plan.root / name
        if path.exists():
            artifacts[path.name] = path
    return artifacts


def _origin(manifest: Manifest) -> dict[str, str | None]:
    """Which code made it; MLflow knows the commit by this name."""
    code = manifest.body["code"]
    return {"mlflow.source.git.commit": code["commit"], "msd.version": code["version"], "git.dirty": str(code["dirty"])}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; nulls are left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {key: value for key, value in flat.items() if value is not None}


def _finished(manifest: Manifest) -> float:
    return float(calendar.timegm(time.strptime(manifest.body["finished"], "%Y-%m-%dT%H:%M:%SZ")))
