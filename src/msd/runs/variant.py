"""The row of a variant: what it is, what became of its students, and what was measured."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import yaml

from msd import store
from msd.config import TEACHER, StudentVariant
from msd.plan import Plan, VariantPlan
from msd.runs.facts import finished, flat, made, origin, surroundings, weights
from msd.runs.row import BUNDLE, FAILED, FINISHED, KILLED, RUNNING, Row
from msd.store import Manifest


def variant_row(key: str, plan: Plan, variant: VariantPlan, evaluation: Manifest | None, stages: list[Row]) -> Row:
    """The row of a variant of which something has begun.

    Args:
        evaluation: its manifest, once all stages are done too.
        stages: the rows of its stages that have begun.
    """
    bundle = Manifest.read(variant.bundle.manifest) if evaluation else None
    end = max([row.end for row in stages] + ([finished(evaluation)] if evaluation else []))
    sampling = evaluation.results["sampling_seconds"] if evaluation else 0
    return Row(
        key=key,
        name=variant.name,
        status=FINISHED if evaluation else _status({row.status for row in stages}),
        start=min([row.start for row in stages], default=end - sampling),
        end=end,  # a manifest tells whole seconds only
        params=_params(plan, variant.name),
        metrics=_metrics(evaluation) | _latency(plan, variant),
        tags={
            "msd.variant": variant.name,
            BUNDLE: _digest(bundle) if bundle else None,
            **surroundings(plan),
            **_metric(evaluation),
            **_dvc(plan),
            **origin(evaluation),
        },
        curves=_means(stages) if evaluation else {},
        artifacts=_settings(plan, variant)
        | (_report(plan, variant) | {"weights.json": weights(bundle)} if bundle else {}),
        bundle=bundle.path.parent if bundle else None,
        image_shape=tuple(bundle.results["image_shape"]) if bundle else (),
    )


def _status(stages: set[str]) -> str:
    """One student that still runs keeps the variant running."""
    if RUNNING in stages:
        return RUNNING
    return next((status for status in (FAILED, KILLED) if status in stages), RUNNING)


def _means(stages: list[Row]) -> dict[int, dict[str, float | None]]:
    """Images seen by a student → the mean over the students of each stage, where all were measured.

    Runs of variants are compared side by side in a tracker, their stages are not.
    """
    kinds: dict[str, list[Row]] = {}
    for row in stages:
        kinds.setdefault(row.params["stage"], []).append(row)
    means: dict[int, dict[str, float | None]] = {}
    for kind, rows in kinds.items():
        for nimg in sorted(set.intersection(*(set(row.curves) for row in rows))):
            for name in rows[0].curves[nimg].keys() - {"nimg"}:
                values = [row.curves[nimg].get(name) for row in rows]
                known = [value for value in values if value is not None]
                if len(known) == len(rows) and not name.startswith("system/"):
                    means.setdefault(nimg, {})[f"{kind}/{name}"] = statistics.fmean(known)
    return dict(sorted(means.items()))


def _digest(bundle: Manifest) -> str:
    """Of the networks, and of how they are drawn from."""
    files = {name: record["sha256"] for name, record in bundle.body["files"].items()}
    return store.digest({"files": files, "settings": bundle.settings})


def _metrics(evaluation: Manifest | None) -> dict[str, float | None]:
    if evaluation is None:
        return {}
    results = evaluation.results
    counts = ("students", "parameters_per_student", "nfe", "images_per_student", "images_total")
    return {
        **{name: results[name] for name in (*counts, "training_seconds", "sampling_seconds")},
        **results["metrics"],
        **{f"asked_class_share_of/{c}": v for c, v in enumerate(results.get("asked_class_share_per_class", []))},
    }


def _metric(evaluation: Manifest | None) -> dict[str, str | None]:
    metric = evaluation.results["metric"] if evaluation else {}
    return {f"metric.{name}": metric.get(name) for name in ("name", "features_sha256")}


def _latency(plan: Plan, variant: VariantPlan) -> dict[str, float | None]:
    latency = made(plan.latency)
    times = latency.results["variants"][variant.name] if latency else {}
    return {f"latency_{name}": value for name, value in times.items() if name.endswith("_ms")}


def _dvc(plan: Plan) -> dict[str, str | None]:
    """Which state of DVC's files this is; a lock that does not record this experiment says nothing of it."""
    lock = Path("dvc.lock")
    recorded = lock.is_file() and f"{plan.root}/" in lock.read_text(encoding="utf-8")
    return {
        "dvc.lock.sha256": store.sha256_file(lock) if recorded else None,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
    }


def _params(plan: Plan, name: str) -> dict[str, Any]:
    """The variant's settings and the recipe, network and evaluation it uses, under the keys of params.yaml."""
    experiment = plan.experiment
    variant = experiment.variants[name]
    used: dict[str, Any] = {
        "variant": name,
        "seed": experiment.seed,
        **variant.model_dump(mode="json", exclude={"recipe"}),
        "evaluation": experiment.evaluation.model_dump(mode="json", exclude={"judge"}),
    }
    if isinstance(variant, StudentVariant):
        small = variant.network != TEACHER
        stages = {*variant.stages, *(["tsm"] if small else [])}
        used["recipe"] = experiment.recipe_of(variant).model_dump(mode="json", include=stages)
        if small:
            used[f"networks.{variant.network}"] = experiment.networks[variant.network].model_dump(mode="json")
    return flat(used)


def _settings(plan: Plan, variant: VariantPlan) -> dict[str, Path | str]:
    """The configuration with this variant alone, and its partition if it is there."""
    resolved = plan.experiment.model_dump(mode="json")
    resolved["variants"] = {variant.name: resolved["variants"][variant.name]}
    artifacts: dict[str, Path | str] = {"params.yaml": yaml.safe_dump(resolved, sort_keys=False)}
    partition = made(variant.partition) if variant.partition else None
    return artifacts | ({"partition.json": partition.file("partition")} if partition else {})


def _report(plan: Plan, variant: VariantPlan) -> dict[str, Path | str]:
    """The report's files as far as they are there."""
    names = ("ablation.csv", "report.html", "figures/overview.png", f"figures/gallery-{variant.name}.png")
    return {path.name: path for name in names if (path := plan.root / name).exists()}
