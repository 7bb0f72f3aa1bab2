"""The Fréchet distance of two Gaussians, exact and fast: ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½. No PyTorch.

With Σ₁ = L Lᵀ the last trace is the sum of the square roots of the eigenvalues of the symmetric Lᵀ Σ₂ L, which needs no
square root of a matrix. L is Cholesky's where Σ₁ has full rank. Else, with fewer images than features or features that
are always zero, L holds the eigenvectors of Σ₁ that carry more than rounding errors: their square roots would add up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from msd.errors import DataError
from msd.evaluate.statistics import Statistics


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """The distance in float64; symmetric up to rounding.

    Raises:
        DataError: they are of different numbers of features.
    """
    if one.mu.shape != other.mu.shape:
        raise DataError(
            "Statistics of different features cannot be compared.", why=f"{len(one.mu)} and {len(other.mu)} features"
        )
    factor = _factor(one.sigma)
    eigenvalues = linalg.eigvalsh(factor.T @ other.sigma @ factor, check_finite=False)
    shift = one.mu - other.mu
    covariances = np.trace(one.sigma) + np.trace(other.sigma) - 2 * np.sqrt(eigenvalues.clip(min=0)).sum()
    return float(shift @ shift + covariances)


def _factor(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """L (D, r) with L Lᵀ = Σ, up to rounding."""
    try:
        return linalg.cholesky(sigma, lower=True, check_finite=False)
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(sigma, check_finite=False)
        kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
        return vectors[:, kept] * np.sqrt(values[kept])
