"""Who is good at what, from features: every student on every part, and each class by itself. Pure.

A Fréchet distance of few images is biased upwards, by more the fewer they are (arXiv 1911.07023). Parts and classes
have few. So every distance stands beside its floor: the same distance of as many real training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd.evaluate.feature_space import Gaussian, frechet, gaussian


@dataclass(frozen=True)
class Labelled:
    """Features (N, D) of images with the classes (N,) that they show or were asked for; ``what`` names them."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    what: str

    def of(self, classes: Sequence[int]) -> Gaussian:
        """The Gaussian of the images of these classes.

        Raises:
            DataError: there are fewer than two.
        """
        name = f"{self.what}, class {classes[0]}" if len(classes) == 1 else f"{self.what}, {len(classes)} classes"
        return gaussian(self.features[np.isin(self.labels, classes)], name)


@dataclass(frozen=True)
class Real:
    """What students are measured against.

    Attributes:
        held_out: all images of the evaluation half.
        training: as many images of the training half as a student draws, the same number of each class.
    """

    held_out: Labelled
    training: Labelled


def on_classes(drawn: Sequence[Labelled], classes: Sequence[int], real: Real) -> dict[str, Any]:
    """Each set of images against held-out images of the same classes, and the floor.

    Args:
        drawn: of each student, or of the routed students together.
        classes: of the images that are compared.

    Raises:
        DataError: one of the sets has fewer than two images of them.
    """
    reference, training = real.held_out.of(classes), real.training.of(classes)
    mine = [images.of(classes) for images in drawn]
    return {
        "classes": list(classes),
        "images": mine[0].count,
        "reference_images": reference.count,
        "floor_images": training.count,
        "floor": frechet(training, reference),
        "distance": [frechet(images, reference) for images in mine],
    }


def balanced(labels: NDArray[np.int64], num_classes: int, per_class: int) -> NDArray[np.int64]:
    """Positions of the first ``per_class`` images of each class, or of all that a class has."""
    return np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(num_classes)])
