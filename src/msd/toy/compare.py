"""One student against many at the same place of the map. Plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msd.intervals import Interval

DIGITS = 6


def comparison(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict at one place of the map, where ``rows`` are alike in all but the number of students.

    ``ratio`` is the geometric mean over seeds of l1(best K > 1) / l1(K = 1); below 1, many students pay. The seeds are
    paired: the same noise. ``tie``: its interval includes 1. The best K > 1 is chosen by the same numbers, so an
    interval just below 1 says a little too much.
    """
    (one,) = (row for row in rows if row["students"] == 1)
    best = min(rows, key=lambda row: row["l1_mean"])
    many = min((row for row in rows if row["students"] > 1), key=lambda row: row["l1_mean"])
    logs = [math.log(m / o) for m, o in zip(many["l1"], one["l1"], strict=True)]
    mean = Interval.of(logs)
    ratio, low, high = (round(math.exp(v), DIGITS) for v in (mean.mean, *(mean.ends or (mean.mean, mean.mean))))
    return {
        "width": one["width"],
        "images_total": one["images_total"],
        "flops": one["flops"],
        "best_students": best["students"],
        "best_many": many["students"],
        "ratio": ratio,
        "ratio_interval": [low, high],
        "tie": low <= 1 <= high,
    }
