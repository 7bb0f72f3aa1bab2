"""How figures look: a colour and a marker per variant, safe for the colour-blind; text readable at 700 px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from msd.report.read import Row
from msd.store import write_with

WIDTH = 7.0  # inches: 700 px on a page at 100 dpi, drawn at twice that
DPI = 200
INK, SOFT, GRID = "#1f2933", "#66727f", "#e3e7eb"
TEACHER = "#4a4a4a"
# Okabe and Ito's colours without the yellow that vanishes on white, then three of Paul Tol's
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933", "#332288"]
MARKERS = "sD^vPXphd"
# light enough for dark figures on them, apart from each other in lightness too
PARTS = ["#9ecae9", "#f9c784", "#8fd3b6", "#e7b6d4", "#d9d9a6", "#c9c3e6", "#f3a6a0", "#b9d67e"]

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Figure:
    """A picture in a file.

    Attributes:
        title: a few words.
        caption: how to read it.
        alt: what it shows, for those who cannot see it.
        variant: whose gallery it is; empty for figures of all variants.
        section: of the page, by its id.
    """

    path: Path
    title: str
    caption: str
    alt: str
    variant: str = ""
    section: str = "figures"


@dataclass(frozen=True)
class Look:
    """Colour and marker of one variant, the same in every figure."""

    colour: str
    marker: str


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Variant → its look: grey for the teacher, the palette in order for the others."""
    students = [row.name for row in rows if not row.is_teacher]
    found = {row.name: Look(TEACHER, "o") for row in rows if row.is_teacher}
    for i, name in enumerate(students):
        found[name] = Look(COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
    return found


def save(canvas: Canvas, path: Path) -> None:
    """Write a PNG atomically; equal figures give equal bytes."""
    write_with(path, lambda p: canvas.savefig(p, dpi=DPI, facecolor="white", metadata={"Software": None}))
