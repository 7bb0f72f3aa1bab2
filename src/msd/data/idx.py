"""idx files, the format of MNIST and Fashion-MNIST: a header of big-endian sizes, then unsigned bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image

from msd.data.images import ImageSource
from msd.data.tables import checked_labels, layout, rows
from msd.data.zips import is_bomb
from msd.errors import DamagedFileError, MissingFileError

TRAINING_IMAGES = "train-images-idx3-ubyte"
UNSIGNED_BYTES = 8  # third byte of the file; the fourth is the number of axes


def idx(path: Path) -> ImageSource:
    """A file of images, plain or gzipped, with its file of labels beside it; of a folder, the training images."""
    file = _plain_or_gz(path / TRAINING_IMAGES) if path.is_dir() else path
    return idx_files(
        file, _plain_or_gz(file.with_name(file.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")))
    )


def idx_files(file: Path, labels_file: Path) -> ImageSource:
    """A file of images and its file of labels."""
    with _open(file, 3) as (_, shape):
        picture_of = layout(shape, str(file))
    with _open(labels_file, 1) as (f, (count,)):
        labels = np.frombuffer(f.read(count), np.uint8)

    def images() -> Iterator[Image.Image]:
        with _open(file, 3) as (f, _):
            yield from map(picture_of, rows(f, shape, file))

    return ImageSource(
        str(file), checked_labels(labels, shape[0], str(labels_file)), images, lambda i: f"{file}: image {i}"
    )


def is_idx(path: Path) -> bool:
    """Whether a file is called as the images of an idx data set are."""
    return "images-idx3-ubyte" in path.name


def _plain_or_gz(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    for candidate in (path, zipped):
        if candidate.is_file():
            return candidate
    raise MissingFileError("An idx file does not exist.", where=f"{path}[.gz]")


@contextmanager
def _open(path: Path, axes: int) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The file behind its header, and its shape."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else open(path, "rb")) as f:
            header = f.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes([0, 0, UNSIGNED_BYTES, axes]):
                raise DamagedFileError(
                    f"A file is no idx file of unsigned bytes with {axes} axes.",
                    where=str(path),
                    why=f"it begins {header[:4].hex()}",
                )
            shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
            if is_bomb(path.stat().st_size, math.prod(shape)):
                raise DamagedFileError("An idx file promises too much.", where=str(path), why=f"{shape} bytes")
            yield f, shape
    except (OSError, EOFError, zlib.error) as e:
        raise DamagedFileError(
            "An idx file cannot be read.", where=str(path), why=str(e), todo="Fetch it again."
        ) from None
