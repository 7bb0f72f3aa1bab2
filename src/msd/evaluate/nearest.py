"""Does a student repeat its training data? The nearest training image of each generated one, and of real ones.

Distances alone say nothing: how near is too near depends on the data. So held-out real images, which cannot have been
copied, are looked up in the same way, and give the scale. A student of smooth or typical images is nearer than they
are without copying, which is why the pictures are kept too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msd.errors import DataError

CHUNK = 2000  # training images at once
NEAR = 0.05  # share of the held-out images that count as near


@dataclass(frozen=True)
class Neighbours:
    """The nearest of a set for each query.

    Attributes:
        distance: (N,) float64, root of the mean squared difference.
        index: (N,) int64, position in the set.
    """

    distance: NDArray[np.float64]
    index: NDArray[np.int64]

    def split(self, count: int) -> tuple[Neighbours, Neighbours]:
        """Those of the first ``count`` queries, and of the others."""
        return (
            Neighbours(self.distance[:count], self.index[:count]),
            Neighbours(self.distance[count:], self.index[count:]),
        )


Space = Callable[[NDArray[np.uint8]], Tensor]
"""Images (N, C, H, W) uint8 → what is compared (N, D) float32."""


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """Grey levels, 0 to 255."""
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))


@torch.no_grad()
def nearest(queries: NDArray[np.uint8], images: NDArray[np.uint8], space: Space) -> Neighbours:
    """Look up the nearest of ``images`` for each query.

    Raises:
        DataError: they are of different shapes, or there is nothing to look in.
    """
    if queries.shape[1:] != images.shape[1:] or not len(images):
        raise DataError(
            "Images cannot be compared with the training images.",
            why=f"they are {queries.shape[1:]}, the {len(images)} training images {images.shape[1:]}",
        )
    mine = space(queries)
    best = torch.full((len(mine),), torch.inf)
    index = torch.zeros(len(mine), dtype=torch.int64)
    for first in range(0, len(images), CHUNK):
        others = space(np.asarray(images[first : first + CHUNK]))
        found = torch.cdist(mine, others).argmin(dim=1)
        exact = (mine - others[found]).square().mean(dim=1).sqrt()  # cdist's own value is rounded: a copy is at 0
        nearer = exact < best
        best, index = torch.where(nearer, exact, best), torch.where(nearer, first + found, index)
    return Neighbours(best.double().numpy(), index.numpy())


def compare(generated: Neighbours, held_out: Neighbours) -> dict[str, Any]:
    """How near generated images come to the training images, by the measure of held-out real ones.

    Returns:
        medians and smallest distances of both, and ``near_share``: the share of the generated images that are as near
        as the nearest 5 % of the held-out ones. A student that copies nothing and draws like the data has 5 %.
    """
    threshold = float(np.quantile(held_out.distance, NEAR))
    return {
        "generated_median": float(np.median(generated.distance)),
        "held_out_median": float(np.median(held_out.distance)),
        "generated_smallest": float(generated.distance.min()),
        "held_out_smallest": float(held_out.distance.min()),
        "near_distance": threshold,
        "near_share": float((generated.distance <= threshold).mean()),
    }
