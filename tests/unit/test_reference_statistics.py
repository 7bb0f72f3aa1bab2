"""Mean and covariance in one pass: NumPy's numbers whatever the batches, EDM's file, one clear error for a bad one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msd.errors import DamagedFileError, DataError, MissingFileError
from msd.evaluate.statistics import Moments, Statistics, cached_statistics

WIDTH = 12


def some_features(count: int = 500, offset: float = 0.0) -> np.ndarray:
    """Correlated features (count, WIDTH) float64."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + offset


def moments_of(features: np.ndarray, batch: int) -> Moments:
    moments = Moments(WIDTH)
    for i in range(0, len(features), batch):
        moments.update(features[i : i + batch])
    return moments


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_moments_are_numpys_whatever_the_batches(batch: int, offset: float) -> None:
    features = some_features(offset=offset)
    moments = moments_of(features, batch)
    assert moments.count == 500
    np.testing.assert_allclose(moments.mu, features.mean(axis=0), rtol=1e-12)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(moments.sigma, expected, rtol=1e-9, atol=1e-9 * expected.max())
    np.testing.assert_array_equal(moments.sigma, moments.sigma.T)


def test_single_precision_features_are_summed_in_double() -> None:
    features = some_features(offset=1000).astype(np.float32)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(moments_of(features, 33).sigma, expected, rtol=1e-9, atol=1e-9 * expected.max())


def test_empty_batch_changes_nothing() -> None:
    moments = moments_of(some_features(), 50)
    before = moments.sigma
    moments.update(np.zeros((0, WIDTH)))
    assert moments.count == 500
    np.testing.assert_array_equal(moments.sigma, before)


def test_bad_features_are_refused() -> None:
    moments = moments_of(some_features(10), 5)
    with pytest.raises(DataError, match="wrong shape"):
        moments.update(np.zeros((3, WIDTH + 1)))
    bad = some_features(4)
    bad[2, 5] = np.nan
    with pytest.raises(DataError, match="image 12"):
        moments.update(bad)
    assert moments.count == 10
    with pytest.raises(DataError, match="two images"):
        _ = moments_of(some_features(1), 1).sigma


def test_file_has_edms_layout_and_comes_back(tmp_path: Path) -> None:
    moments = moments_of(some_features(), 50)
    Statistics(moments.mu, moments.sigma).save(tmp_path / "ref.npz")
    with np.load(tmp_path / "ref.npz") as arrays:
        assert sorted(arrays) == ["mu", "sigma"]
        assert (arrays["mu"].shape, arrays["sigma"].shape) == ((WIDTH,), (WIDTH, WIDTH))
        assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64
    loaded = Statistics.load(tmp_path / "ref.npz")
    np.testing.assert_array_equal(loaded.mu, moments.mu)
    np.testing.assert_array_equal(loaded.sigma, moments.sigma)


MU, SIGMA = np.zeros(WIDTH), np.eye(WIDTH)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"mu": MU}, "sigma"),
        ({"mu": MU, "sigma": np.eye(WIDTH - 1)}, "shape"),
        ({"mu": SIGMA, "sigma": SIGMA}, "shape"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "not finite"),
        ({"mu": MU, "sigma": np.full((WIDTH, WIDTH), np.inf)}, "not finite"),
        ({"mu": np.array([{}], dtype=object), "sigma": SIGMA}, "pickle"),
        ({"mu": np.array(["a"] * WIDTH), "sigma": SIGMA}, "convert"),
    ],
)
def test_file_with_other_content(arrays: dict[str, np.ndarray], problem: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(DamagedFileError, match=problem) as refused:
        Statistics.load(tmp_path / "ref.npz")
    assert "ref.npz" in refused.value.where


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "npy"])
def test_damaged_file(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    Statistics(MU, SIGMA).save(path)
    content = bytearray(path.read_bytes())
    flipped = content.copy()
    flipped[len(flipped) // 2] ^= 1
    np.save(tmp_path / "array.npy", SIGMA)
    array = (tmp_path / "array.npy").read_bytes()
    path.write_bytes({"empty": b"", "text": b"text", "cut": content[:-50], "flipped": flipped, "npy": array}[damage])
    with pytest.raises(DamagedFileError, match="cannot be used"):
        Statistics.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        Statistics.load(tmp_path / "ref.npz")


def test_statistics_are_computed_once_for_what_they_depend_on(tmp_path: Path) -> None:
    calls = []

    def compute() -> Moments:
        calls.append(1)
        return moments_of(some_features(), 50)

    first = cached_statistics(tmp_path, {"data": "a" * 64, "features": "b" * 64}, compute)
    again = cached_statistics(tmp_path, {"features": "b" * 64, "data": "a" * 64}, compute)
    np.testing.assert_array_equal(first.sigma, again.sigma)
    assert len(calls) == 1
    cached_statistics(tmp_path, {"data": "a" * 64, "features": "c" * 64}, compute)
    assert len(calls) == len(list(tmp_path.iterdir())) == 2
