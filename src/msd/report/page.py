"""report.html: one file with everything in it, for a screen, a phone and paper. Needs no network and no script."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from msd.report import columns, summary, table
from msd.report.read import Report
from msd.report.style import Figure, looks


def render(report: Report, figures: Sequence[Figure]) -> str:
    """The page as text.

    Args:
        report: the data.
        figures: as ``figures.draw_all`` gives them: the toy, where there is one, the overview, and the others.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("msd.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ticks": _ticks, "breakable": _breakable, "inline": _inline, "pretty": _pretty}
    numbers = report.numbers
    opening = 1 + (report.toy is not None)
    body = columns.cells(numbers["rows"], numbers["metric"])
    return environment.get_template("report.html.j2").render(
        numbers=numbers,
        label=columns.metric_label(numbers["metric"]),
        paragraph=summary.paragraph(numbers),
        comparisons=[summary.compare(c, numbers) for c in summary.comparisons(numbers)],
        cards=_cards(numbers),
        headings=[column.heading for column in columns.columns(numbers["metric"])],
        rows=list(zip(report.rows, body, strict=True)),
        looks=looks(report.rows),
        notes=table.notes(numbers),
        glance=figures[:opening],
        plain=[figure for figure in figures[opening:] if not figure.variant],
        galleries=[figure for figure in figures if figure.variant],
        provenance=report.provenance,
        origins=report.origins,
        manifests=[(path, manifest.body, report.sha256[path]) for path, manifest in report.manifests.items()],
    )


def _cards(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers to see first: (value, what it is, of which row)."""
    name = numbers["metric"]["name"]
    students = [row for row in numbers["rows"] if row["model"] != "teacher"]
    teachers = [row for row in numbers["rows"] if row["model"] == "teacher"]
    cards = []
    if students:
        best = min(students, key=lambda row: row[name])
        cards.append((summary.distance_text(best[name], numbers), f"{name}, best student", best["variant"]))
    for teacher in teachers[:1]:
        cards.append((summary.distance_text(teacher[name], numbers), f"{name}, teacher", f"NFE {teacher['nfe']}"))
    cards.append((summary.distance_text(numbers["floor"]["metrics"][name], numbers), f"{name}, floor", "real images"))
    if students and teachers:
        speed = teachers[0]["latency_p50_ms"] / best["latency_p50_ms"]
        cards.append((f"{speed:.{0 if speed >= 10 else 1}f} ×", "faster than the teacher", best["variant"]))
    return cards


def _ticks(text: str) -> Markup:
    """Plain text with names in backticks → escaped HTML with names in <code> and units that stay by their numbers."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(?<=\d) (?=(%|ms|k|M|s|min|h)\b|%)", "\u00a0", marked))


def _breakable(heading: str) -> Markup:
    """A heading whose digest may go to the next line."""
    return Markup(str(escape(heading)).replace("@", "@<wbr>"))


def _inline(path: Path) -> Markup:
    """A PNG as a data URI."""
    return Markup("data:image/png;base64,") + base64.b64encode(path.read_bytes()).decode()


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
