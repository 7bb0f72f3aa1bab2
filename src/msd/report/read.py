"""All that a report says, read from the manifests of a plan in one place and checked before any of it is shown.

Verifies that every manifest was made from the inputs that lie on disk now, and that all rows carry one metric.
Draws nothing, computes no metric.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msd.config import TEXT_PARTITIONS, StudentVariant
from msd.errors import DamagedFileError
from msd.plan import Node, Plan, VariantPlan
from msd.report import seeds, summary
from msd.report.check import RERUN, check_inputs
from msd.report.seeds import Replicate
from msd.store import Manifest, digest, sha256_file

SAME_METRIC = (
    "name",
    "protocol",
    "features_sha256",
    "judge_sha256",
    "clip",
    "images",
    "reference_images",
    "reference_sha256",
    "prompts_sha256",
)
NOT_OF_FLOOR = {"images", "prompts_sha256"}
EVALUATED = ("students", "parameters_per_student", "nfe", "images_per_student", "images_total", "training_seconds")


@dataclass(frozen=True)
class Stage:
    """One finished training stage of a student.

    Attributes:
        manifest: identifies it; students may share a stage.
        images: it was trained on.
        journal: its curves.
    """

    kind: str
    manifest: Path
    images: int
    journal: Path


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        numbers: the table's row: ``variant``, ``model`` and the columns' keys.
        latency_p95_ms: of one image.
        per_class: share of images taken for the class asked for, by class.
        parts: classes, or prompts, of each student; empty for the teacher.
        partition: its kind; empty for the teacher.
        within_part_distance: of class embeddings, where the partition measured it.
        described: what a partition of prompts says of itself (``partition.text_report``): ``description`` and
            ``stability``, None of an earlier version; None where classes are split.
        students: the training stages of each.
        gallery: (classes, columns, C, H, W) uint8 as .npy.
        sources: kind → path under the experiment's folder of the manifests that its numbers are read from.
        replicates: the distance with other seeds, where there are results.
    """

    numbers: dict[str, Any]
    latency_p95_ms: float
    per_class: list[float]
    parts: list[list[int]]
    partition: str
    within_part_distance: float | None
    described: dict[str, Any] | None
    students: list[list[Stage]]
    gallery: Path
    sources: dict[str, str]
    replicates: list[Replicate]

    @property
    def name(self) -> str:
        return self.numbers["variant"]

    @property
    def is_teacher(self) -> bool:
        return self.numbers["model"] == "teacher"


@dataclass(frozen=True)
class Report:
    """What the tables, figures and pages are made of.

    Attributes:
        numbers: plain JSON: experiment, metric, rows, floor, latency, machines, manifests that they come from.
        rows: the variants, in the order of params.yaml.
        floor_per_class: the floor's share by class; empty where it was not measured.
        floor: path under the experiment's folder of the floor's manifest.
        provenance: name → text, for the report's last section.
        origins: network → how it came about, for display.
        manifests: path under the experiment's folder → manifest, all of the plan.
        sha256: path under the experiment's folder → sha256 of the manifest.
        toy: the 2-D toy's manifest, where the experiment has one.
    """

    numbers: dict[str, Any]
    rows: list[Row]
    floor_per_class: list[float]
    floor: str
    provenance: dict[str, str]
    origins: dict[str, dict[str, Any]]
    manifests: dict[str, Manifest]
    sha256: dict[str, str]
    toy: Manifest | None

    @property
    def condition(self) -> str:
        """What the table's images were asked for by."""
        return str(self.numbers["conditions"])


def read(plan: Plan) -> Report:
    """Read and check all manifests of a plan.

    Raises:
        MissingFileError: a manifest, or an input of one, does not exist.
        DamagedFileError: a manifest is stale or incomplete, or the rows were measured differently.
    """
    nodes = sorted(plan, key=lambda node: node.manifest)
    manifests = {_short(plan, node.manifest): Manifest.read(node.manifest) for node in nodes}
    sums = {name: sha256_file(m.path) for name, m in manifests.items()}
    for manifest in manifests.values():
        check_inputs(manifest)

    def of(node: Node) -> Manifest:
        return manifests[_short(plan, node.manifest)]

    floor, latency = of(plan.floor), of(plan.latency)
    others = seeds.evaluations(plan)
    evaluations = {v.name: of(v.evaluation) for v in plan.variants.values()}
    metric = one_metric(evaluations | {f"{name}, seed {seed}": m for (name, seed), m in others.items()}, floor)
    rows = [_row(plan, variant, of, seeds.replicates(plan, variant.name, others)) for variant in plan.variants.values()]
    training = [of(node) for v in plan.variants.values() for student in v.students for node in student.stages]
    timing = {key: _need(latency, key) for key in ("device", "threads", "batch_size")}
    numbers = {
        "experiment": plan.experiment.experiment,
        "metric": metric,
        "conditions": "prompt" if plan.text else "class",
        "rows": [row.numbers for row in rows],
        "floor": {
            "metrics": _need(floor, "metrics"),
            "images": _need(floor, "metric")["images"],
            "of": floor.results.get("of", summary.OF_TRAINING),
        },
        "latency": {**timing, "repeats": plan.latency.settings["repeats"]},
        "machines": {"latency": machines([latency]), "training": machines(training)},
        "manifests": {
            _short(plan, m.path): sums[_short(plan, m.path)] for m in [*evaluations.values(), floor, latency]
        },
    }
    data, teacher = of(plan.data), of(plan.teacher)
    finished = [m.body["finished"] for m in manifests.values()]
    provenance = {
        "configuration": f"sha256 {digest(plan.experiment.model_dump(mode='json'))}",
        "data": f"{plan.experiment.data.source}, sha256 {_need(data, 'sha256')}",
        "images": " and ".join(f"{count:,} {half}" for half, count in _need(data, "images").items()),
        "teacher": f"{_need(teacher, 'parameters'):,} parameters, sha256 {teacher.sha256('weights')}",
        "metric": f"protocol {metric['protocol']}, features sha256 {metric['features_sha256']}"
        + (f", judge sha256 {metric['judge_sha256']}" if metric["judge_sha256"] else ""),
        "machine": "; ".join(machines(list(manifests.values()))),
        "code": "; ".join(_codes(manifests)),
        "finished": f"{min(finished)} to {max(finished)}",
    }
    networks = {name if name == "teacher" else f"{name} network": node for name, node in plan.networks.items()}
    return Report(
        numbers=numbers,
        rows=rows,
        floor_per_class=floor.results.get("asked_class_share_per_class") or [],
        floor=_short(plan, floor.path),
        provenance=provenance,
        origins={name: _origin(node, of(node)) for name, node in networks.items()},
        manifests=manifests,
        sha256=sums,
        toy=of(plan.toy) if plan.toy else None,
    )


def _row(plan: Plan, variant: VariantPlan, of: Callable[[Node], Manifest], replicates: list[Replicate]) -> Row:
    evaluation, settings = of(variant.evaluation), plan.experiment.variants[variant.name]
    latency = _need(of(plan.latency), "variants")[variant.name]
    metrics = _need(evaluation, "metrics")
    partition = of(variant.partition) if variant.partition else None
    numbers = {
        "variant": variant.name,
        "model": settings.model,
        "network": getattr(settings, "network", settings.model),
        "stages": list(getattr(settings, "stages", [])),
        "changes": dict(_flat(settings.recipe)) if isinstance(settings, StudentVariant) else {},
        **{key: _need(evaluation, key) for key in EVALUATED},
        **{key: metrics[key] for key in (_need(evaluation, "metric")["name"], "precision", "recall")},
        **{key: metrics.get(key) for key in ("asked_class_share", "clip_score")},
        "latency_p50_ms": latency["p50_ms"],
        "shuffled_prompts_share": evaluation.results.get("shuffled_prompts_share"),
    }
    return Row(
        numbers=numbers,
        latency_p95_ms=latency["p95_ms"],
        per_class=evaluation.results.get("asked_class_share_per_class", []),
        parts=partition.results.get("parts", []) if partition else [],
        partition=partition.settings["kind"] if partition else "",
        within_part_distance=partition.results.get("within_part_distance") if partition else None,
        described=_described(partition) if partition else None,
        students=[[_stage(node, of(node)) for node in student.stages] for student in variant.students],
        gallery=evaluation.file("gallery"),
        sources={"evaluation": _short(plan, evaluation.path), "latency": _short(plan, plan.latency.manifest)},
        replicates=replicates,
    )


def _described(partition: Manifest) -> dict[str, Any] | None:
    if partition.settings["kind"] not in TEXT_PARTITIONS:
        return None
    return {"description": _need(partition, "description"), "stability": partition.results.get("stability")}


def _stage(node: Node, manifest: Manifest) -> Stage:
    return Stage(node.kind, node.manifest, _need(manifest, "nimg"), manifest.file("journal"))


def one_metric(evaluations: Mapping[str, Manifest], floor: Manifest | None = None) -> dict[str, Any]:
    """The metric that all rows share. The floor may be of another number of images, and then says so.

    Raises:
        DamagedFileError: a row was measured differently.
    """
    measured = {**evaluations, **({"the floor": floor} if floor else {})}
    metrics = {name: _need(m, "metric") for name, m in measured.items()}
    first, expected = next(iter(metrics.items()))
    for name, other in metrics.items():
        for key in SAME_METRIC if name in evaluations else set(SAME_METRIC) - NOT_OF_FLOOR:
            if other.get(key) != expected.get(key):
                raise DamagedFileError(
                    "The rows were measured differently; a table never mixes metrics.",
                    where=str(measured[name].path),
                    why=f"{key} is {other.get(key)!r} for {name}, {expected.get(key)!r} for {first}",
                    todo="Delete the manifest of the odd one and run `snakemake` again.",
                )
    return {key: expected.get(key) for key in SAME_METRIC}


def _need(manifest: Manifest, key: str) -> Any:
    try:
        return manifest.results[key]
    except KeyError:
        raise DamagedFileError(
            "A manifest lacks a result that the report shows.",
            where=str(manifest.path),
            why=f"there is no results.{key}",
            todo=RERUN.format(path=manifest.path),
        ) from None


def _short(plan: Plan, path: Path) -> str:
    return os.path.relpath(path, plan.root)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def machines(manifests: list[Manifest]) -> list[str]:
    """Each machine once, in words."""
    found: dict[str, None] = {}  # a set that keeps its order
    for manifest in manifests:
        machine = manifest.body["machine"]
        parts = [machine["cpu"], f"{machine['cores']} cores", *([machine["gpu"]] if machine.get("gpu") else [])]
        found[", ".join(parts)] = None
    return list(found)


def _codes(manifests: dict[str, Manifest]) -> list[str]:
    found = set()
    for manifest in manifests.values():
        code = manifest.body["code"]
        commit = f"commit {code['commit']}" if code["commit"] else "outside a git checkout"
        found.add(f"msd {code['version']}, {commit}{', with local changes' if code['dirty'] else ''}")
    return sorted(found)


def _origin(node: Node, manifest: Manifest) -> dict[str, Any]:
    """How a network came about: the record that came with the file, or the training of this experiment."""
    results = {k: v for k, v in manifest.results.items() if k != "origin"}
    origin = manifest.results.get("origin") or {}
    source = {key: value for key, value in node.settings.items() if key != "role"}
    return {"settings": source, **results, **({"record that came with the file": origin} if origin else {})}
