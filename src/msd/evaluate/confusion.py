"""Which classes are alike to the judge: what it takes real images for, beside what they are.

A property of the data and the judge, not of any student; a partition is looked at in its light.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from msd.evaluate.classifier import Classifier

OTHERS = 10  # of a thousand classes nobody wants all
CHUNK = 1000


@torch.no_grad()
def likely_others(
    images: NDArray[np.uint8], labels: NDArray[np.int64], judge: Classifier
) -> list[list[tuple[int, float]]]:
    """For each class, the other classes that its images look like.

    Args:
        images: (N, C, H, W) uint8, real ones.
        labels: (N,) what they show.

    Returns:
        Class → (other class, mean probability that the judge gives it), the likeliest first, at most ten.
    """
    classes = judge.description["num_classes"]
    total = np.zeros((classes, classes))
    for first in range(0, len(images), CHUNK):
        part = slice(first, first + CHUNK)
        shares = judge.of_uint8(torch.from_numpy(np.array(images[part])))[1].softmax(1).double().cpu().numpy()
        np.add.at(total, labels[part], shares)
    mean = total / np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    np.fill_diagonal(mean, 0)
    order = np.argsort(-mean, axis=1, kind="stable")[:, : min(OTHERS, classes - 1)]
    return [[(int(other), round(float(mean[c, other]), 6)) for other in row] for c, row in enumerate(order)]
