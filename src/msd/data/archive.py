"""A prepared data set on disk: memory-mapped arrays of a training half and an evaluation half.

Training code is only ever handed the training half. torch is imported where a tensor is made: the report shows images
without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from msd.store import Manifest

if TYPE_CHECKING:
    from torch import Tensor


class TrainingImages(Protocol):
    """What a stage of training reads: images, or their latents, each with its condition."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 and conditions (B, …) at ``indices`` (B,), on the CPU."""

    def some_conditions(self, count: int) -> Tensor:
        """Conditions to draw pictures of, (count, …)."""


class Conditions(Protocol):
    """The conditions of a part: indexed by (B,) int64, it gives (B, …), on the CPU. A tensor is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, C, H, W) uint8, memory-mapped, with labels (N,) int64.

    Attributes:
        sha256: digest of the whole set that the images come from.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    num_classes: int
    sha256: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.images.shape
        return c, h, w

    def __len__(self) -> int:
        return len(self.labels)

    def some_conditions(self, count: int) -> Tensor:
        """Conditions to draw pictures of: the classes in turn, (count,) int64."""
        import torch

        return torch.arange(count) % self.num_classes

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] float32 (B, C, H, W) and labels (B,) int64 at ``indices`` (B,)."""
        import torch

        i = indices.numpy()
        return to_float(torch.from_numpy(self.images[i])), torch.from_numpy(self.labels[i])

    def positions_of(self, classes: list[int]) -> NDArray[np.int64]:
        """Where all images of the given classes are, ascending, (M,)."""
        return np.flatnonzero(np.isin(self.labels, classes))

    def indices_of(self, classes: list[int]) -> Tensor:
        """``positions_of`` as a tensor, (M,) int64."""
        import torch

        return torch.from_numpy(self.positions_of(classes))


def to_float(images: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float −1…1 → uint8 by clamp((x + 1)·127.5, 0, 255), truncated (DMD2's quantisation)."""
    return ((images + 1) * 127.5).clamp(0, 255).byte()


def open_half(manifest: Manifest, half: str) -> LabelledImages:
    """Open one half of a prepared data set, verified by sha256."""
    return LabelledImages(
        images=np.load(manifest.file(f"{half}-images"), mmap_mode="r"),
        labels=np.load(manifest.file(f"{half}-labels")),
        num_classes=manifest.results["num_classes"],
        sha256=manifest.results["sha256"],
    )
