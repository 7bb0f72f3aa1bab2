"""Means over training seeds and their 95 % confidence intervals by Student's t. Reads and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtrit  # scipy.stats takes a second to import

Verdict = Literal[
    "holds", "does not hold", "undecided", "better, one seed", "worse, one seed", "mixed, one seed", "not run"
]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        seeds: how many values it is of; with one, ``half_width`` is None.
    """

    mean: float
    half_width: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of one value or more."""
        n = len(values)
        if n < 2:
            return cls(values[0], None, n)
        return cls(fmean(values), float(stdtrit(n - 1, 0.975)) * stdev(values) / n**0.5, n)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lower and upper end."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """First minus second, paired by seed: students of one seed share their draws. None without a pair."""
    shared = sorted(first.keys() & second.keys())
    return Interval.of([first[s] - second[s] for s in shared]) if shared else None


def verdict(smaller_expected: Sequence[Interval | None]) -> Verdict:
    """What the differences say of a claim that expects each of them to be negative.

    One interval on the wrong side of zero refutes the claim; all on the right side support it.
    """
    if not smaller_expected or any(d is None for d in smaller_expected):
        return "not run"
    found = [d for d in smaller_expected if d is not None]
    ends = [d.ends for d in found]
    if any(e is None for e in ends):
        better = {d.mean < 0 for d in found}
        return "mixed, one seed" if len(better) == 2 else "better, one seed" if better == {True} else "worse, one seed"
    known = [e for e in ends if e is not None]
    if any(low > 0 for low, _ in known):
        return "does not hold"
    return "holds" if all(high < 0 for _, high in known) else "undecided"
