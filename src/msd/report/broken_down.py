"""The page's sections about who is good at what and about cost, their sentences, and breakdown.csv and nearest.csv."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from msd.report import columns
from msd.report.breakdown import Broken

SPACES = ("pixels", "features")


def csv(broken: Sequence[Broken]) -> str:
    """breakdown.csv: one line per part and student, per class, and for all classes; ``student`` counts from 1."""
    return _text([line for b in broken for line in _lines(b)])


def nearest_csv(broken: Sequence[Broken]) -> str:
    """nearest.csv: one line per variant and space."""
    rows = []
    for b in broken:
        found = b.results["nearest"]
        counts = {key: found[key] for key in ("images", "held_out_images")}
        rows += [{"variant": b.row.name, "space": space, **counts, **found[space]} for space in SPACES]
    return _text(rows)


def _text(rows: list[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).convert_dtypes().to_csv(index=False, lineterminator="\n")


def _lines(broken: Broken) -> list[dict[str, Any]]:
    common = ("floor", "images", "floor_images", "reference_images")

    def line(of: dict[str, Any], what: str, which: int | None, student: int | None, **values: Any) -> dict[str, Any]:
        first = {"variant": broken.row.name, "what": what, "which": which, "student": student}
        return first | values | {key: of[key] for key in common}

    lines = []
    for k, part in enumerate(broken.parts):
        for j, (distance, share) in enumerate(zip(part["distance"], part["asked_class_share"], strict=True)):
            lines.append(line(part, "part", k + 1, j + 1, routed=j == k, distance=distance, asked_class_share=share))
    one = [("class", c["classes"][0], c["student"] + 1, c) for c in broken.results["classes"]]
    for what, which, student, of in [*one, ("all", None, None, broken.results["routed"])]:
        values = {key: of[key] for key in ("distance", "asked_class_share")}
        lines.append(line(of, what, which, student, routed=True, **values))
    return lines


def sentence(broken: Broken) -> str:
    """Whether the owner of a part is the best at it, and how much worse the others are."""
    parts = broken.parts
    best = sum(min(part["distance"]) == part["distance"][k] for k, part in enumerate(parts))
    ratios = [d / part["distance"][k] for k, part in enumerate(parts) for j, d in enumerate(part["distance"]) if j != k]
    return (
        f"`{broken.row.name}`: the owner is the best student for {best} of {len(parts)} parts. A student asked for a "
        f"part of another is {statistics.median(ratios):.2g} times as far from the real images as the owner "
        f"(median; {min(ratios):.2g} to {max(ratios):.2g})."
    )


def near_row(broken: Broken) -> list[str]:
    """Cells of the table of nearest training images."""
    cells = []
    for space in SPACES:
        found = broken.results["nearest"][space]
        digits = 1 if space == "pixels" else 2
        cells += [f"{found[key]:.{digits}f}" for key in ("generated_median", "held_out_median", "generated_smallest")]
        cells.append(columns.percent(found["near_share"]))
    return cells
