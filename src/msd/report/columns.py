"""The columns of the ablation table and how each is written for people. No pandas: a terminal must not wait for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "–"
Format = Callable[[float, Sequence[float]], str]


@dataclass(frozen=True)
class Column:
    """One column after ``variant``.

    Attributes:
        key: its name in ablation.csv.
        title: its heading for people.
        text: (value, all values of the column) → text; some columns share their number of decimals.
        better: +1 the larger the better, −1 the smaller, 0 a setting and no result.
        whole: holds whole numbers.
        source: the kind of manifest that it is read from.
        found: where it stands there; ``{key}`` and ``{variant}`` are filled in.
    """

    key: str
    title: str
    text: Format
    better: int = 0
    whole: bool = False
    source: str = "evaluation"
    found: str = "results.{key}"

    @property
    def heading(self) -> str:
        """The title with an arrow towards better."""
        return self.title + {-1: " ↓", 0: "", 1: " ↑"}[self.better]


@dataclass(frozen=True)
class Cell:
    """A value as text; ``best`` marks the best student of the column."""

    text: str
    best: bool = False


def metric_label(metric: Mapping[str, Any]) -> str:
    """The metric's full name: numbers compare only where it is the same."""
    return f"{metric['name']}@{metric['features_sha256'][:8]}"


def columns(metric: Mapping[str, Any]) -> list[Column]:
    """The table's columns, in order; the distance is named by the metric."""
    measured, timed = "results.metrics.{key}", "results.variants.{variant}.p50_ms"
    judged = [Column("asked_class_share", "asked class", lambda v, _: percent(v), better=1, found=measured)]
    clip = [Column("clip_score", "CLIP", lambda v, _: f"{v:.2f}", better=1, found=measured)]
    return [
        Column("students", "students", _count, whole=True),
        Column("parameters_per_student", "parameters each", lambda v, _: millions(v), whole=True),
        Column("nfe", "NFE", _count, whole=True),
        Column("images_per_student", "images each", lambda v, _: thousands(v), whole=True),
        Column("images_total", "images in all", lambda v, _: thousands(v), whole=True),
        Column(metric["name"], metric_label(metric), distance, better=-1, found=measured),
        Column("precision", "precision", _share, better=1, found=measured),
        Column("recall", "recall", _share, better=1, found=measured),
        *(judged if metric["judge_sha256"] else []),
        *(clip if metric.get("clip") else []),
        Column("latency_p50_ms", "latency p50", lambda v, _: milliseconds(v), better=-1, source="latency", found=timed),
        Column("training_seconds", "training", lambda v, _: duration(v), better=-1),
    ]


def cells(rows: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> list[list[Cell]]:
    """The table's body without its first column.

    Args:
        rows: each with ``model`` (``teacher`` or ``students``) and the columns' keys, None where unknown.
        metric: gives the distance its name.
    """
    by_column = []
    for column in columns(metric):
        known = [row[column.key] for row in rows if row[column.key] is not None]
        texts = [NOTHING if row[column.key] is None else column.text(row[column.key], known) for row in rows]
        best = _best(rows, texts, column)
        by_column.append(
            [Cell(text, text in best and row["model"] != "teacher") for row, text in zip(rows, texts, strict=True)]
        )
    return [list(row) for row in zip(*by_column, strict=True)]


def _best(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], column: Column) -> set[str]:
    """The text of the best student; what reads the same is equally good. Empty where all students read the same."""
    students = [
        (column.better * row[column.key], text)
        for row, text in zip(rows, texts, strict=True)
        if row["model"] != "teacher" and row[column.key] is not None
    ]
    if not column.better or len({text for _, text in students}) < 2:
        return set()
    return {max(students)[1]}


def _count(value: float, _: Sequence[float]) -> str:
    return f"{value:,.0f}"


def _share(value: float, _: Sequence[float]) -> str:
    return f"{value:.3f}"


def distance(value: float, values: Sequence[float]) -> str:
    """A Fréchet distance: one decimal, two where the smallest of its column is below 5."""
    return f"{value:.{2 if min(values) < 5 else 1}f}"


def percent(value: float) -> str:
    """0.973 → ``97.3 %``."""
    return f"{100 * value:.1f} %"


def millions(value: float) -> str:
    """190,000 → ``0.19 M``."""
    value /= 1e6
    digits = 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f} M"


def thousands(value: float) -> str:
    """1,234 → ``1.2 k``; 64,000 → ``64 k``; 2,560,000 → ``2.6 M``."""
    if value < 1000:
        return f"{value:.0f}"
    value, unit = (value / 1000, "k") if value < 999_500 else (value / 1e6, "M")
    text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{text.removesuffix('.0')} {unit}"


def milliseconds(value: float) -> str:
    """Two significant digits below 100 ms: more would be noise."""
    digits = 2 if value < 1 else 1 if value < 10 else 0
    return f"{value:,.{digits}f} ms"


def duration(seconds: float) -> str:
    """95 → ``95 s``; 750 → ``12.5 min``; 11,520 → ``3.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
