"""Intervals over training seeds, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from msd.intervals import Interval, difference, verdict


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(30, 2, n)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert Interval.of(list(values)).ends == pytest.approx((low, high), rel=1e-4)


def test_differences_are_paired_by_seed() -> None:
    first, second = {0: 1.0, 1: 12.0, 2: 23.0, 3: 0.0}, {2: 25.0, 1: 14.0, 0: 3.0}
    assert difference(first, second) == Interval(-2.0, 0.0, 3)
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_interval_of_noise_holds_the_mean_in_95_percent() -> None:
    draws = np.random.default_rng(0).normal(5, 1, (2000, 3))
    ends = [Interval.of(list(row)).ends for row in draws]
    assert sum(low <= 5 <= high for low, high in ends) / len(ends) == pytest.approx(0.95, abs=0.015)


def test_verdicts() -> None:
    better, worse, unclear = Interval(-2, 1, 3), Interval(2, 1, 3), Interval(-2, 3, 3)
    assert verdict([better, better]) == "holds"
    assert verdict([better, worse]) == "does not hold"
    assert verdict([better, unclear]) == "undecided"
    assert verdict([better, None]) == "not run"
    assert verdict([Interval(-1, None, 1)]) == "better, one seed"
    assert verdict([Interval(-1, None, 1), better, Interval(1, None, 1)]) == "mixed, one seed"
    assert verdict([Interval(1, None, 1)]) == "worse, one seed"
