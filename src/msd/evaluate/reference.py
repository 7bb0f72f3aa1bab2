"""The real images that a protocol compares with: a half of the experiment's own data, or images in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msd.data.archive import open_half
from msd.data.images import ImageSource, Shaping, arrays
from msd.data.sources import SOURCES, recognise
from msd.evaluate.metrics import Features, spread, statistics_of
from msd.evaluate.protocol import BATCH, RealImages, Reference, Ruler
from msd.store import Manifest, digest, sha256_file
from msd.weights import FOREIGN


def reference_of(ruler: Ruler, data: Manifest) -> Reference:
    """The protocol's own reference.

    Args:
        data: the manifest of the experiment's images.

    Raises:
        MissingFileError, DamagedFileError, DataError: the images cannot be read.
    """
    reference = ruler.protocol.reference
    if reference.images is not None:
        return reference_in_files(ruler, Path(reference.images))
    images = open_half(data, reference.half).images
    return Reference(ruler.of_half(images, data.sha256(f"{reference.half}-images")), len(images))


def reference_in_files(ruler: Ruler, path: Path) -> Reference:
    """Images in files, all of them, as a reference."""
    features, sha256 = features_in_files(ruler, path)
    real = {name: _real(ruler, f, name) for name, f in features.items()}
    return Reference(real, len(next(iter(features.values()))), sha256)


def floor_in_files(ruler: Ruler, path: Path) -> tuple[dict[str, float], Reference]:
    """Every second image of a reference against the others; and the whole reference."""
    features, sha256 = features_in_files(ruler, path)
    others = {name: RealImages(_neighbours(ruler, f[::2]), statistics_of(f[::2])) for name, f in features.items()}
    scores = ruler.scores({name: f[1::2] for name, f in features.items()}, others)
    return scores, Reference(others, len(next(iter(features.values()))), sha256)


def features_in_files(ruler: Ruler, path: Path) -> tuple[dict[str, Features], str]:
    """Features (N, D) of all images in files, in every space, kept by what they depend on; and the files' digest."""
    source, sha256, resolution = open_images(path), content_of(path), ruler.protocol.resolution

    def in_space(name: str) -> Features:
        key = {**ruler.key(name, sha256), "resolution": resolution or 0}
        return ruler.kept(key, lambda: features_of(source, ruler, [name])[name])

    return {name: in_space(name) for name in ruler.extractors}, sha256


def features_of(
    source: ImageSource,
    ruler: Ruler,
    spaces: list[str] | None = None,
    note: Callable[[NDArray[np.uint8]], None] = lambda batch: None,
) -> dict[str, Features]:
    """Features of all images in some spaces (None: all); ``note`` is told of each batch (B, C, H, W)."""
    found: dict[str, list[Features]] = {name: [] for name in spaces or ruler.extractors}
    for batch in _batches(source, ruler):
        for name, parts in found.items():
            parts.append(ruler.extractors[name].all_of([batch]))
        note(batch)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def open_images(path: Path) -> ImageSource:
    """Images in files; labels are of no importance here, and need not be there."""
    return SOURCES[recognise(str(path))].open(path)


def _batches(source: ImageSource, ruler: Ruler) -> Iterator[NDArray[np.uint8]]:
    colour = any(space.source in FOREIGN for space in ruler.protocol.spaces.values())
    images = arrays(source, Shaping(rgb=colour, resolution=ruler.protocol.resolution))
    while group := list(islice(images, BATCH)):
        yield np.stack(group)


def _real(ruler: Ruler, features: Features, name: str) -> RealImages:
    published = ruler.published if name == ruler.protocol.name else None
    return RealImages(_neighbours(ruler, features), published or statistics_of(features))


def _neighbours(ruler: Ruler, features: Features) -> Features:
    return features[spread(len(features), ruler.protocol.neighbour_images)]


def content_of(path: Path) -> str:
    """sha256 of a file, or over all files of a folder and their names; links are followed, as pictures are found."""
    if path.is_file():
        return sha256_file(path)
    files = [Path(at, name) for at, _, here in os.walk(path, followlinks=True) for name in here]
    return digest({str(file.relative_to(path)): sha256_file(file) for file in files})
