"""A source → a training half and an evaluation half on disk. No PyTorch here: the job is short, its import is not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msd.config import Data
from msd.data.sources import load_source
from msd.errors import DataError
from msd.store import Manifest, write_with

HALVES = ("train", "evaluation")


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
