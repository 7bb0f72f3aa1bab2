"""What every source of images is, and the one way from its images to checked arrays. No PyTorch here."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msd.errors import DamagedFileError, DataError

UNLABELLED = -1
MODES = {"L": 1, "RGB": 3}  # Pillow's name of 8-bit grey and colour → channels
CONVERTIBLE = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # 8 bits or fewer: conversion loses no depth


@dataclass(frozen=True)
class ImageSource:
    """Images that are read one at a time and in a fixed order, with labels that are known before.

    Attributes:
        where: the file or folder, for errors.
        labels: (N,) int64; all ``UNLABELLED`` if the source has none.
        images: opens the source and yields its N images; a picture file is decoded by whoever uses its pixels.
        name: what an error calls image i.
        num_classes: as the source itself says; 0 if it does not.
        class_names: in the order of class ids, if the classes have names.
        captions: of each image, if it has one instead of a class.
    """

    where: str
    labels: NDArray[np.int64]
    images: Callable[[], Iterator[Image.Image]]
    name: Callable[[int], str]
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ImageSource:
        """The first ``count`` images; the classes stay as they are."""
        return replace(
            self,
            labels=self.labels[:count],
            captions=self.captions[:count],
            images=lambda: islice(self.images(), count),
        )


@dataclass(frozen=True)
class Shaping:
    """How a picture is changed on its way: not at all by default.

    Attributes:
        rgb: make every picture colour: grey is repeated, palettes are looked up, transparency is dropped.
        resolution: cut out the centre square and resize it to this side in pixels with a Lanczos filter, as EDM's
            dataset tool does with ``--transform=center-crop``.
    """

    rgb: bool = False
    resolution: int | None = None

    def __call__(self, picture: Image.Image) -> Image.Image:
        if self.rgb and picture.mode in CONVERTIBLE:
            picture = picture.convert("RGB")
        if self.resolution and picture.mode in MODES:
            width, height = picture.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
            picture = picture.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        return picture


AS_IT_IS = Shaping()


def settle_classes(source: ImageSource, classes: int | None) -> ImageSource:
    """The source with its number of classes known and every label checked against it.

    Args:
        classes: how many there are; None: as many as the source says, else the largest label and one more.

    Raises:
        DataError: there are no images, no labels, or a label out of range (the first one is named).
    """
    if not len(source):
        raise DataError("There are no images.", where=source.where)
    if (source.labels == UNLABELLED).all():
        if classes != 1:
            raise DataError(
                "The images have no labels.", where=source.where, todo="Give labels, or set `classes: 1`: all are one."
            )
        return replace(source, labels=np.zeros(len(source), np.int64), num_classes=1)
    if classes and source.num_classes not in (0, classes):
        raise DataError(
            f"The number of classes is not {classes}.", where=source.where, why=f"the source has {source.num_classes}"
        )
    limit = classes or source.num_classes or len(source)  # no more classes than images
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= limit))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"A label is out of range: {source.labels[first]}.",
            where=source.name(first),
            why=f"labels are 0 to {limit - 1}; {len(wrong)} of {len(source)} are not",
            todo="Mend the labels, or set `classes` to the right number.",
        )
    return replace(source, num_classes=classes or source.num_classes or int(source.labels.max()) + 1)


def arrays(source: ImageSource, shaping: Shaping = AS_IT_IS) -> Iterator[NDArray[np.uint8]]:
    """Every image as (C, H, W) uint8, one at a time.

    Raises:
        DataError: an image is neither 8-bit grey nor RGB, or differs from the first in size or mode.
        DamagedFileError: a picture cannot be decoded.
    """
    mode, size = "", (0, 0)
    for i, picture in enumerate(source.images()):
        with readable(source.name(i)):
            picture = shaping(picture)
        if i == 0:
            mode, size = picture.mode, picture.size
        if picture.mode not in MODES or picture.mode != mode:
            raise DataError(
                f"An image has the mode {picture.mode}.",
                where=source.name(i),
                why=f"all must be like the first: {mode}" if i and mode in MODES else "only 8-bit L and RGB are used",
                todo="Convert it, or all with `msd data pack --rgb`.",
            )
        if picture.size != size:
            raise DataError(
                f"An image has {_pixels(picture.size)} pixels.",
                where=source.name(i),
                why=f"all must be like the first: {_pixels(size)}",
                todo="Resize it, or all with `msd data pack --resolution`.",
            )
        with readable(source.name(i)):
            array = np.asarray(picture)  # decodes
        yield np.moveaxis(np.atleast_3d(array), -1, 0)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what Pillow or a zip file throws at a bad picture, or at a bomb of pixels, into one error that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    # Pillow's decoders have no common error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as e:
        raise DamagedFileError(
            "A picture cannot be read.", where=name, why=str(e), todo="Replace it, or remove it and its label."
        ) from None


def image_of(array: NDArray[np.uint8]) -> Image.Image:
    """(C, H, W) uint8 with one or three channels → a picture."""
    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)))
