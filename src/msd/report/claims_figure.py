"""One picture of all claims on a data set: every pair's ratio of distances with its interval."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas

from msd.intervals import Interval
from msd.report.claims import Claims, Comparison
from msd.report.style import COLOURS, INK, SOFT, STYLE, WIDTH, save

HELPS, HARMS = COLOURS[2], COLOURS[1]
TICKS = (0.5, 0.7, 1, 1.4, 2, 4)
LEFT = 0.25  # an interval that reaches zero ends here: the axis is logarithmic


def draw(claims: Claims, path: Path) -> None:
    """Forest plot: left of one the first variant of a pair is better. Pairs that did not run are left out."""
    pairs = [(j.claim.number, c, c.difference) for j in claims.judged for c in j.comparisons if c.difference]
    with rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 0.9 + 0.24 * len(pairs)), layout="constrained")
        axes = canvas.subplots()
        axes.axvline(1, color=INK, lw=0.8)
        for y, (_, comparison, found) in enumerate(pairs):
            second = claims.rows[comparison.second].interval(claims.metric["name"]).mean
            middle, half = (second + found.mean) / second, (found.half_width or 0) / second
            ends = [[min(half, middle - LEFT)], [half]] if half else None
            axes.errorbar(middle, y, xerr=ends, fmt="o", ms=4, lw=1.4, capsize=3, color=_colour(found))
        axes.set_yticks(range(len(pairs)), [_label(number, comparison) for number, comparison, _ in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [f"× {x:g}" for x in TICKS])
        axes.minorticks_off()
        axes.grid(axis="x")
        axes.set_xlabel(f"{claims.metric['name']} of the first over that of the second; left of 1: the first is better")
        save(canvas, path)


def _label(number: str, comparison: Comparison) -> str:
    return f"{number}   {comparison.first} v. {comparison.second}"


def _colour(found: Interval) -> str:
    """Green and red where the interval leaves zero out, grey where it does not or there is none."""
    low, high = found.ends or (-1.0, 1.0)
    return HELPS if high < 0 else HARMS if low > 0 else SOFT
