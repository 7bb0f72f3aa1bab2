"""The ablation table in a terminal. Reads what the report wrote, so it is there at once."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from msd.plan import Plan
from msd.report import columns
from msd.report.check import current_report

GAP = " "


def show(plan: Plan) -> str:
    """The table with aligned columns, the floor, and where the page is; ``*`` marks the best student.

    Raises:
        MissingFileError: there is no report yet.
        DamagedFileError: the report is of other settings or of older results.
    """
    manifest = current_report(plan)
    numbers, metric = manifest.results["numbers"], manifest.results["numbers"]["metric"]
    with open(manifest.file("ablation.csv"), encoding="utf-8", newline="") as f:
        written = list(csv.DictReader(f))
    models = {row["variant"]: row["model"] for row in numbers["rows"]}
    keys = [column.key for column in columns.columns(metric)]
    rows = [
        {"model": models[line["variant"]]} | {key: float(line[key]) if line[key] else None for key in keys}
        for line in written
    ]
    headings = [["variant", ""], *(_two_lines(column.heading) for column in columns.columns(metric))]
    body = [
        [line["variant"], *(cell.text + ("*" if cell.best else " ") for cell in cells)]
        for line, cells in zip(written, columns.cells(rows, metric), strict=True)
    ]
    top = [[words[i] + " " * (k > 0) for k, words in enumerate(headings)] for i in range(2)]
    widths = [max(map(len, texts)) for texts in zip(*top, *body, strict=True)]
    lines = [*(_aligned(line, widths) for line in top), "-" * (sum(widths) + len(GAP) * (len(widths) - 1))]
    lines += [_aligned(line, widths) for line in body]
    path = os.path.relpath(manifest.file("report.html"), Path.cwd())
    floor = manifest.results["notes"][0].replace("`", "")
    return "\n".join([*lines, "", "* best student of the column", floor, "", f"The whole report: {path}"])


def _two_lines(heading: str) -> list[str]:
    """A heading on two lines, its arrow with the first."""
    words, arrow = (heading[:-2], heading[-2:]) if heading[-1] in "↑↓" else (heading, "")
    first, mark, second = words.partition("@") if "@" in words else words.partition(" ")
    return [first + arrow, mark.strip() + second]


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *rest = (
        text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
    )
    return GAP.join([first, *rest]).rstrip()
