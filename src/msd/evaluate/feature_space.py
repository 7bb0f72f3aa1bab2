"""Sets of images as Gaussians in the metric's features, for distances between many small sets.

``frechet.py`` takes moments of any number of images, at a cost that grows with the features alone. The breakdown
compares hundreds of subsets with few images each. The distance is the same (a test holds the two together).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msd.errors import DataError
from msd.evaluate.features import Extractor
from msd.evaluate.protocol import batches


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set.

    Attributes:
        mean: (D,) float64.
        root: R (min(N, D), D) float64 with RᵀR the covariance (N − 1 in the denominator).
        count: N, images of the set.
    """

    mean: NDArray[np.float64]
    root: NDArray[np.float64]
    count: int


def features_of(images: NDArray[np.uint8], extractor: Extractor) -> NDArray[np.float64]:
    """The metric's features (N, D) of images (N, C, H, W) uint8.

    Raises:
        DataError: the images are not of the network's shape.
    """
    return extractor.all_of(batches(images)).astype(np.float64)


def gaussian(features: NDArray[np.float64], what: str) -> Gaussian:
    """The Gaussian of features (N, D).

    Args:
        what: whose features they are, for the message.

    Raises:
        DataError: fewer than two images, another shape, or a number that is not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise DataError(
            "A distance needs two images or more, as rows of features.",
            where=what,
            why=f"the features have the shape {features.shape}",
            todo="Ask for more images of each class (evaluation.breakdown.images), or hold out more.",
        )
    if not np.isfinite(features).all():
        raise DataError("A feature is not finite.", where=what)
    mean = features.mean(axis=0)
    root = np.asarray(np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))
    return Gaussian(mean, root, len(features))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 √(Σ_a Σ_b)).

    With Σ = RᵀR the last trace is the sum of the singular values of R_a R_bᵀ, a matrix no larger than the smaller set:
    exact also for fewer images than features, where a root of the singular Σ_a Σ_b is slow and loses digits.

    Raises:
        DataError: they have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError("Two sets have different features.", why=f"{len(a.mean)} and {len(b.mean)} of them")
    between = np.linalg.norm(a.root @ b.root.T, "nuc")
    spread = np.square(a.root).sum() + np.square(b.root).sum() - 2 * between
    return float(np.square(a.mean - b.mean).sum() + spread)
