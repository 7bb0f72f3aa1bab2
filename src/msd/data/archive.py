"""A prepared data set on disk: memory-mapped arrays of a training half and an evaluation half.

Training code is only ever handed the training half.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msd.config import Data
from msd.data.sources import load_source
from msd.errors import DataError
from msd.store import Manifest, write_with

HALVES = ("train", "evaluation")


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

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] float32 (B, C, H, W) and labels (B,) int64 at ``indices`` (B,)."""
        i = indices.numpy()
        return to_float(torch.from_numpy(self.images[i])), torch.from_numpy(self.labels[i])

    def indices_of(self, classes: list[int]) -> Tensor:
        """Positions of all images of the given classes, ascending, (M,) int64."""
        return torch.from_numpy(np.flatnonzero(np.isin(self.labels, classes)))


def to_float(images: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float −1…1 → uint8 by clamp((x + 1)·127.5, 0, 255), truncated (DMD2's quantisation)."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def evaluation_mask(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which images are held out: within each class, evenly spread over the source's order. (N,) bool."""
    mask = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        of_class = np.flatnonzero(labels == c)
        rank = np.arange(len(of_class))
        mask[of_class] = np.floor((rank + 1) * share) > np.floor(rank * share)
    return mask


def prepare(settings: Data, out: Path) -> Manifest:
    """Load a source, split it and write ``{train,evaluation}-{images,labels}.npy`` beside the manifest ``out``."""
    images, labels, source = load_source(settings.source)
    mask = evaluation_mask(labels, settings.evaluation_share)
    files = {}
    for half, chosen in zip(HALVES, (~mask, mask), strict=True):
        if not chosen.any():
            raise DataError(
                f"The {half} half of the data is empty.",
                where="data.evaluation_share",
                why=str(settings.evaluation_share),
            )
        for name, array in (("images", images[chosen]), ("labels", labels[chosen])):
            files[f"{half}-{name}"] = path = out.parent / f"{half}-{name}.npy"
            write_with(path, partial(np.save, arr=array))
    results = {
        "sha256": source.sha256,
        "num_classes": source.num_classes,
        "image_shape": list(images.shape[1:]),
        "images": {"train": int((~mask).sum()), "evaluation": int(mask.sum())},
    }
    return Manifest.write(out, kind="data", settings=settings.model_dump(mode="json"), files=files, results=results)


def open_half(manifest: Manifest, half: str) -> LabelledImages:
    """Open one half of a prepared data set, verified by sha256."""
    return LabelledImages(
        images=np.load(manifest.file(f"{half}-images"), mmap_mode="r"),
        labels=np.load(manifest.file(f"{half}-labels")),
        num_classes=manifest.results["num_classes"],
        sha256=manifest.results["sha256"],
    )
