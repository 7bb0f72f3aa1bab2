"""What each variant costs, to use and to train: cost.csv and the table of the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from msd.plan import Plan, VariantPlan
from msd.report import columns
from msd.report.read import Report

UNKNOWN = {"joules_per_image": "not reported"}


@dataclass(frozen=True)
class Costs:
    """The table.

    Attributes:
        rows: one per variant, in the order of the report; None: not known or not reported.
        circumstances: of the measurement: device, batches, source of energy and memory, decoder.
    """

    rows: list[dict[str, Any]]
    circumstances: dict[str, Any]


def read(plan: Plan, report: Report) -> Costs:
    """The costs of a report's rows, from manifests that it has checked."""
    measured = report.manifests[os.path.relpath(plan.latency.manifest, plan.root)].results
    rows = []
    for row in report.rows:
        latency = measured["variants"][row.name]
        rows.append(
            {
                "variant": row.name,
                "latency_p50_ms": latency["p50_ms"],
                "latency_p95_ms": latency["p95_ms"],
                "undecoded_p50_ms": latency.get("undecoded_p50_ms"),
                "tiny_p50_ms": latency.get("tiny_p50_ms"),
                "images_per_second": latency["images_per_second"],
                "parameters_per_student": row.numbers["parameters_per_student"],
                "parameters": latency["parameters"],
                "peak_memory_bytes": latency["peak_memory_bytes"],
                "flops_per_image": latency["flops_per_image"],
                "joules_per_image": latency["joules_per_image"],
                "training_seconds": row.numbers["training_seconds"],
                "images_total": row.numbers["images_total"],
                "training_flops": _training_flops(plan, plan.variants[row.name], report),
            }
        )
    return Costs(rows, {key: value for key, value in measured.items() if key != "variants"})


def _training_flops(plan: Plan, variant: VariantPlan, report: Report) -> int | None:
    """Of all stages of all students, one that they share once; None where a stage does not tell or there is none."""
    stages = {node.manifest for student in variant.students for node in student.stages}
    found = [report.manifests[os.path.relpath(path, plan.root)].results.get("flops") for path in stages]
    known = [flops for flops in found if flops is not None]
    return sum(known) if found and len(known) == len(found) else None


def csv(costs: Costs) -> str:
    """cost.csv: raw numbers, an empty field where one is not known; the batches and the device in every row."""
    keys = ("device", "threads", "throughput_batch", "memory", "energy")
    table = pd.DataFrame([row | {key: costs.circumstances[key] for key in keys} for row in costs.rows])
    return table.convert_dtypes().to_csv(index=False, lineterminator="\n")


def headings(costs: Costs) -> list[str]:
    """Above the cells."""
    return [title for title, _, _ in _columns(costs)]


def cells(costs: Costs) -> list[list[str]]:
    """The table's body without its first column."""
    return [
        [
            text(row[key]) if row[key] is not None else UNKNOWN.get(key, columns.NOTHING)
            for _, key, text in _columns(costs)
        ]
        for row in costs.rows
    ]


def notes(costs: Costs) -> list[str]:
    """What one must know to read the table."""
    how = costs.circumstances
    threads = f", {how['threads']} thread{'s' * (how['threads'] != 1)}" if how["device"] == "cpu" else ""
    memory = (
        "the tensors that are alive at once, weights included, without what a kernel needs inside"
        if how["memory"] == "counted"
        else "the allocator's peak and the weights"
    )
    energy = (
        f"{how['energy']} counts the whole device, other work on it included."
        if how["energy"]
        else "not reported by this device."
    )
    return [
        f"Latency: one image at a time. Images per second: batches of {how['throughput_batch']} that ask for the "
        f"conditions in turn, as students own them; {how['device']}{threads}, all variants measured in turn.",
        f"Memory: {memory}, for the same batch with all students of the variant loaded.",
        "FLOPs: counted operation by operation, a multiplication and an addition as two; of an image over all network "
        "evaluations, of the training over all updates of all students, their critics and teacher evaluations "
        "included, a stage that students share once. Drawing regression pairs and the teacher's own training are not "
        "counted.",
        "Decoding: no decoder, the networks draw pixels; the times are those of finished images."
        if how["decoder"] is None
        else f"Decoding: by {how['decoder']}, in the times and the FLOPs; {_undecoded(costs)} without. Encoding the "
        "prompt is in neither.",
        *(["Tiny decoder: AutoencoderTiny in its place. No metric is of its images."] if _has_tiny(costs) else []),
        f"Energy per image: {energy}",
    ]


def _undecoded(costs: Costs) -> str:
    known = {row["variant"]: row["undecoded_p50_ms"] for row in costs.rows if row["undecoded_p50_ms"] is not None}
    return "latency " + ", ".join(f"{columns.milliseconds(value)} (`{name}`)" for name, value in known.items())


def _has_tiny(costs: Costs) -> bool:
    return any(row["tiny_p50_ms"] is not None for row in costs.rows)


def _columns(costs: Costs) -> Sequence[tuple[str, str, Callable[[Any], str]]]:
    return [
        ("latency p50 ↓", "latency_p50_ms", columns.milliseconds),
        ("p95 ↓", "latency_p95_ms", columns.milliseconds),
        *([("p50 with the tiny decoder ↓", "tiny_p50_ms", columns.milliseconds)] if _has_tiny(costs) else []),
        (
            f"images/s at {costs.circumstances['throughput_batch']} ↑",
            "images_per_second",
            lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}",
        ),
        ("parameters each", "parameters_per_student", columns.millions),
        ("in all", "parameters", columns.millions),
        ("peak memory", "peak_memory_bytes", lambda v: f"{v / 2**20:,.3g} MiB"),
        ("FLOP per image", "flops_per_image", flops),
        ("energy per image", "joules_per_image", lambda v: f"{v:.3g} J"),
        ("training", "training_seconds", columns.duration),
        ("images in all", "images_total", columns.thousands),
        ("training FLOP", "training_flops", flops),
    ]


def flops(value: float) -> str:
    """27,172,096 → ``27 M``; 1.435e12 → ``1.4 T``."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.2g} {unit}".rstrip() if value < 99.5 else f"{value:.0f} {unit}".rstrip()
        value /= 1000
    return f"{value:.2g} E" if value < 99.5 else f"{value:,.0f} E"
