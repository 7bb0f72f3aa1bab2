"""The table of a report, as it lies there."""

from __future__ import annotations

import csv

from msd.plan import Plan

CSV_COLUMNS = [
    "variant",
    "students",
    "parameters_per_student",
    "nfe",
    "images_per_student",
    "images_total",
    "fd_digits",
    "precision",
    "recall",
    "asked_class_share",
    "latency_p50_ms",
    "training_seconds",
]


def table_of(plan: Plan) -> list[list[str]]:
    with open(plan.root / "ablation.csv", encoding="utf-8", newline="") as f:
        return list(csv.reader(f))
