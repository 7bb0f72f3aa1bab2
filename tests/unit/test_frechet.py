"""The Fréchet distance: SciPy's square root, torch-fidelity and clean-fid say the same, also where ranks are low."""

from __future__ import annotations

import numpy as np
import pytest
from cleanfid.fid import frechet_distance as cleanfid_distance
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from msd.errors import DataError
from msd.evaluate.frechet import frechet_distance
from msd.evaluate.metrics import spread, statistics_of
from msd.evaluate.statistics import Statistics

WIDTH = 40


def features(seed: int, count: int, zeros: int = 0) -> np.ndarray:
    """Correlated features (count, WIDTH) float32, the last ``zeros`` of them always zero."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + rng.normal(size=WIDTH)
    found[:, WIDTH - zeros :] = 0
    return found.astype(np.float32)


def by_square_root(one: Statistics, other: Statistics) -> float:
    product = sqrtm(one.sigma @ other.sigma).real
    return float(((one.mu - other.mu) ** 2).sum() + np.trace(one.sigma + other.sigma - 2 * product))


def test_it_is_what_three_others_compute() -> None:
    one, other = (statistics_of(features(seed, 300)) for seed in (0, 1))
    found = frechet_distance(one, other)
    a, b = ({"mu": s.mu, "sigma": s.sigma} for s in (one, other))
    assert found == pytest.approx(by_square_root(one, other), rel=1e-9)
    assert found == pytest.approx(fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID], rel=1e-9)
    assert found == pytest.approx(cleanfid_distance(one.mu, one.sigma, other.mu, other.sigma), rel=1e-9)
    assert found == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_gaussians_whose_distance_is_known() -> None:
    one = Statistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    other = Statistics(np.array([1.0, 0.0, 2.0]), np.diag([4.0, 4.0, 0.0]))
    assert frechet_distance(one, other) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + 9)
    assert frechet_distance(other, one) == pytest.approx(15)


@pytest.mark.parametrize(("count", "zeros"), [(300, 0), (300, 7), (25, 0), (2, 0)])
def test_a_set_is_at_no_distance_from_itself_whatever_its_rank(count: int, zeros: int) -> None:
    mine = features(0, count, zeros)
    shuffled = statistics_of(mine[::-1])
    assert abs(frechet_distance(statistics_of(mine), shuffled)) < 1e-9


@pytest.mark.parametrize(("counts", "zeros"), [((300, 300), 5), ((25, 300), 0), ((300, 25), 0), ((25, 20), 3)])
def test_fewer_images_than_features(counts: tuple[int, int], zeros: int) -> None:
    """By singular values of the centred features, which need no covariance: tr (Σ₁ Σ₂)^½ = ‖X₁ X₂ᵀ‖ of all."""
    sets = [features(seed, count, zeros).astype(float) for seed, count in enumerate(counts)]
    roots = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in sets]
    nuclear = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    expected = ((sets[0].mean(0) - sets[1].mean(0)) ** 2).sum() + sum((r**2).sum() for r in roots) - 2 * nuclear
    found = frechet_distance(*(statistics_of(x) for x in sets))
    assert found == pytest.approx(expected, rel=1e-7)


def test_statistics_of_other_features_are_refused() -> None:
    with pytest.raises(DataError, match="different features"):
        frechet_distance(Statistics(np.zeros(2), np.eye(2)), Statistics(np.zeros(3), np.eye(3)))


def test_spread() -> None:
    assert spread(5, None).tolist() == spread(5, 7).tolist() == [0, 1, 2, 3, 4]
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
