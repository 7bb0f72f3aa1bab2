"""Loss curves from the journals that the manifests name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from msd.report import columns
from msd.report.read import Report, Row, Stage
from msd.report.style import WIDTH, Figure, looks, save
from msd.training import journal

POINTS = 30  # per line and stage; more are joined by their median
MAX_LENGTHS = 3  # lengths of training up to which each gets a column of panels
LOG_SPAN = 30  # largest over smallest value from which a panel is logarithmic
FIRST = [  # the order of the panels; what is not named here follows by the alphabet
    "dm_loss",
    "dm_gradient_mean_abs",
    "fake_score_loss",
    "regression_loss",
    "sample_spread",
    "student_gradient_norm",
    "fake_score_gradient_norm",
    "generator_adversarial_loss",
    "discriminator_loss",
    "logits_real",
    "logits_fake",
    "loss",
]
Line = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class _Curve:
    """One student's way through its stages: metric → (images seen, value)."""

    variant: str
    stages: list[Stage]
    lines: dict[str, Line]

    @property
    def images(self) -> int:
        return sum(stage.images for stage in self.stages)


def draw(report: Report, folder: Path) -> list[Figure]:
    """``losses.png`` (dm, then adm) and ``losses-tsm.png``, each only if there are such curves."""
    figures = []
    path = folder / "losses.png"
    if _draw(report, ("dm", "adm"), path):
        figures.append(
            Figure(
                path,
                "Loss curves, DM then ADM",
                "One row of panels per measured quantity, one column per length of training, one line per student "
                "in its variant's colour; the dot is where DM ends and ADM begins. Each point is a median over its "
                "neighbours. "
                "`dm_loss` is the size of a gradient, no distance: flat does not mean stuck. "
                "What was zero throughout is left out.",
                "Training curves of all students, one panel per loss.",
            )
        )
    path = folder / "losses-tsm.png"
    if _draw(report, ("tsm",), path):
        figures.append(
            Figure(
                path,
                "Loss curves, TSM",
                "Teacher score matching, trained once for each network that differs from the teacher's; "
                "drawn in the colour of the first variant that uses it.",
                "Training curves of teacher score matching.",
            )
        )
    return figures


def _draw(report: Report, kinds: tuple[str, ...], path: Path) -> bool:
    curves = [_Curve(row.name, stages, _joined(stages)) for row, stages in _chains(report.rows, kinds)]
    metrics = {metric for curve in curves for metric, (_, values) in curve.lines.items() if values.any()}
    if not metrics:
        return False
    names = sorted(metrics, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    lengths = sorted({curve.images for curve in curves})
    columns_of = [[length] for length in lengths] if len(lengths) <= MAX_LENGTHS else [lengths]
    canvas = Canvas(figsize=(WIDTH, 1.1 * len(names) + 0.9), layout="constrained")
    axes = canvas.subplots(len(names), len(columns_of), squeeze=False, sharex="col", sharey="row")
    for row_axes, name in zip(axes, names, strict=True):
        for ax, lengths_here in zip(row_axes, columns_of, strict=True):
            _panel(ax, [c for c in curves if c.images in lengths_here and name in c.lines], name, report)
        row_axes[0].set_title(name.replace("_", " "), loc="left")
    for ax, lengths_here in zip(axes[-1], columns_of, strict=True):
        ax.set_xlim(0, lengths_here[-1])
        ax.set_xlabel(f"images seen, of {columns.thousands(lengths_here[-1])}")
        ax.locator_params(axis="x", nbins=4)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: columns.thousands(v)))
    look = looks(report.rows)
    shown = list(dict.fromkeys(curve.variant for curve in curves))
    keys = [Line2D([], [], color=look[name].colour, lw=2, label=name) for name in shown]
    canvas.legend(handles=keys, loc="outside upper left", ncols=min(4, len(keys)))
    save(canvas, path)
    return True


def _panel(ax: Axes, curves: Sequence[_Curve], name: str, report: Report) -> None:
    look = looks(report.rows)
    for curve in curves:
        (x, y), colour = curve.lines[name], look[curve.variant].colour
        ax.plot(x, y, color=colour, lw=1.1, alpha=0.85)
        turn = curve.stages[0].images
        if len(curve.stages) > 1 and x[0] <= turn:
            ax.plot(turn, np.interp(turn, x, y), "o", ms=4, color=colour, mec="white", mew=0.6, zorder=3)
    values = np.concatenate([curve.lines[name][1] for curve in curves]) if curves else np.zeros(0)
    if len(values) and values.min() > 0 and values.max() > LOG_SPAN * values.min():
        ax.set_yscale("log")
    else:
        ax.locator_params(axis="y", nbins=4)
    ax.grid(axis="y", lw=0.6)


def _chains(rows: Sequence[Row], kinds: tuple[str, ...]) -> list[tuple[Row, list[Stage]]]:
    """Every student's stages of these kinds; a chain that variants share comes once, with the first of them."""
    found: dict[tuple[Path, ...], tuple[Row, list[Stage]]] = {}
    for row in rows:
        for student in row.students:
            stages = [stage for stage in student if stage.kind in kinds]
            if stages:
                found.setdefault(tuple(stage.manifest for stage in stages), (row, stages))
    return list(found.values())


def _joined(stages: Sequence[Stage]) -> dict[str, Line]:
    """Metric → (images seen, value), the stages one after the other."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    offset = 0
    for stage in stages:
        points: dict[str, list[tuple[float, float]]] = {}
        for nimg, metrics in journal.metrics(stage.journal).items():
            for name, value in metrics.items():
                if value is not None:
                    points.setdefault(name, []).append((offset + nimg, value))
        for name, pairs in points.items():
            found.setdefault(name, []).append(_thinned(np.array(pairs, dtype=np.float64)))
        offset += stage.images
    return {name: (xy[:, 0], xy[:, 1]) for name, xy in ((name, np.concatenate(parts)) for name, parts in found.items())}


def _thinned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) points by their medians in at most ``POINTS`` bins."""
    if len(points) <= POINTS:
        return points
    return np.array([np.median(part, axis=0) for part in np.array_split(points, POINTS)])
