"""Reference statistics for Fréchet distances: mean and covariance of features, kept as EDM keeps them. No PyTorch.

They are computed in one pass with a constant amount of memory, and cached by what they depend on.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from msd.errors import DamagedFileError, DataError, MissingFileError
from msd.store import digest, write_with


@dataclass(frozen=True)
class Statistics:
    """Mean ``mu`` (D,) and covariance ``sigma`` (D, D), both float64."""

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write an npz file with ``mu`` and ``sigma``, EDM's layout, atomically."""
        write_with(path, lambda temporary: np.savez(temporary, mu=self.mu, sigma=self.sigma))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what ``save`` or EDM's ``fid.py ref`` wrote.

        Raises:
            MissingFileError: there is no such file.
            DamagedFileError: it cannot be read, or does not hold finite statistics of matching shapes.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mu, sigma = (np.asarray(arrays[key], dtype=np.float64) for key in ("mu", "sigma"))
        except FileNotFoundError:
            raise MissingFileError("There are no reference statistics.", where=str(path)) from None
        except (OSError, EOFError, KeyError, MemoryError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as e:
            raise _damaged(path, str(e)) from None
        if mu.ndim != 1 or sigma.shape != mu.shape * 2:
            raise _damaged(path, f"mu has the shape {mu.shape} and sigma {sigma.shape}, not (D,) and (D, D)")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise _damaged(path, "a number is not finite")
        return cls(mu, sigma)


class Moments:
    """Mean and covariance of features that come in batches of any size.

    Batches are merged by the exact update of sums of squares about the mean (Chan, Golub and LeVeque, 1983), which
    loses no digits where the mean is large.

    Args:
        width: D, the number of features of an image.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))  # Σ (x − mean)(x − mean)ᵀ

    def update(self, features: ArrayLike) -> None:
        """Take in a batch (B, D) of finite numbers.

        Raises:
            DataError: it has another shape, or a number that is not finite; nothing of it was taken in.
        """
        batch = np.asarray(features, dtype=np.float64)
        if batch.shape[1:] != self._mean.shape:
            raise DataError("Features have a wrong shape.", why=f"{batch.shape}, expected (B, {len(self._mean)})")
        if not np.isfinite(batch).all():
            image = self.count + int(np.flatnonzero(~np.isfinite(batch).all(axis=1))[0])
            raise DataError("A feature is not finite.", where=f"image {image}")
        if not len(batch):
            return
        mean = batch.mean(axis=0)
        centred, shift, total = batch - mean, mean - self._mean, self.count + len(batch)
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(batch) / total)
        self._mean += shift * (len(batch) / total)
        self.count = total

    @property
    def mu(self) -> NDArray[np.float64]:
        """Mean (D,)."""
        return self._mean.copy()

    @property
    def sigma(self) -> NDArray[np.float64]:
        """Covariance (D, D) with N − 1 in the denominator, as NumPy's and EDM's.

        Raises:
            DataError: fewer than two images.
        """
        if self.count < 2:
            raise DataError("A covariance needs two images or more.", why=f"there were {self.count}")
        return self._scatter / (self.count - 1)


def cached_statistics(folder: Path, depends_on: Mapping[str, str | int], compute: Callable[[], Moments]) -> Statistics:
    """The statistics of these dependencies, from the cache ``folder`` or else computed and put there.

    Args:
        depends_on: all that decides the numbers: the data's digest, the feature network's sha256, …
        compute: takes in all images' features.

    Raises:
        DamagedFileError: the cached file is damaged.
    """
    path = folder / f"{digest(dict(depends_on), 16)}.npz"
    if not path.exists():
        moments = compute()
        Statistics(moments.mu, moments.sigma).save(path)
    return Statistics.load(path)


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        "Reference statistics cannot be used.",
        where=str(path),
        why=why,
        todo="Fetch the file again; one in the cache may be deleted.",
    )
