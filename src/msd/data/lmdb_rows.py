"""The LMDB files of DMD2 (arXiv 2405.14867): a key for each image and each label.

``images_shape`` holds "N C H W" as text, ``images_<i>_data`` the bytes of image i; ``labels_shape`` "N",
``labels_<i>_data`` an int64. Those of latents have ``prompts_<i>_data``, UTF-8 text, which ``msd.text`` reads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msd.data.images import UNLABELLED, ImageSource
from msd.data.tables import layout
from msd.errors import DamagedFileError, DataError

DATABASE = "data.mdb"  # the file in an LMDB folder


def database_of(path: Path) -> Path:
    """The file itself, of an LMDB folder or of a single file."""
    return path / DATABASE if path.is_dir() else path


def lmdb_rows(path: Path) -> ImageSource:
    """Images (C, H, W) uint8 and labels int64 in a folder with ``data.mdb``, or in a single file."""
    with open_rows(path) as rows:
        shape = rows.shape("images")
        picture_of = layout(shape, str(path))
        labels = np.full(shape[0], UNLABELLED)
        if rows.has("labels"):
            if rows.shape("labels")[0] != shape[0]:
                raise DataError("There are not as many labels as images.", where=str(path))
            labels = np.array([rows.row("labels", i, np.int64, ()) for i in range(shape[0])])

    def images() -> Iterator[Image.Image]:
        with open_rows(path) as rows:
            for i in range(shape[0]):
                yield picture_of(rows.row("images", i, np.uint8, shape[1:]))

    return ImageSource(str(path), labels, images, lambda i: f"{path}: images_{i}_data")


class Rows:
    """The rows of named arrays in one read transaction."""

    def __init__(self, transaction: Any, path: Path, entries: int) -> None:
        self.transaction, self.path, self.entries = transaction, path, entries

    def has(self, array: str) -> bool:
        return self.transaction.get(f"{array}_shape".encode()) is not None

    def shape(self, array: str) -> tuple[int, ...]:
        """Shape (N, …) of a whole array."""
        key = f"{array}_shape"
        try:
            shape = tuple(map(int, self._get(key).split()))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 0:
            raise DamagedFileError("A shape in an LMDB file cannot be read.", where=f"{self.path}: {key}")
        if shape[0] > self.entries:  # before memory is taken for so many
            raise DamagedFileError(
                "An LMDB file promises too much.",
                where=f"{self.path}: {key}",
                why=f"{shape[0]:,} rows, but {self.entries:,} entries",
            )
        return shape

    def row(self, array: str, i: int, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        """Row i, an array of ``shape``."""
        content, expected = self.content(array, i), math.prod(shape) * np.dtype(dtype).itemsize
        if len(content) != expected:
            raise DamagedFileError(
                "A row of an LMDB file has a wrong length.",
                where=f"{self.path}: {array}_{i}_data",
                why=f"{len(content)} bytes, expected {expected}",
            )
        return np.frombuffer(content, dtype).reshape(shape)

    def content(self, array: str, i: int) -> bytes:
        """The bytes of row i."""
        return self._get(f"{array}_{i}_data")

    def _get(self, key: str) -> bytes:
        content = self.transaction.get(key.encode())
        if content is None:
            raise DamagedFileError("A key is missing in an LMDB file.", where=f"{self.path}: {key}")
        return content


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Rows]:
    """A folder with ``data.mdb``, or a single file, open for reading."""
    try:
        # LMDB maps the file; reading behind the end of a cut one would kill the process
        with lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False) as environment:
            stat = environment.stat()
            used = (environment.info()["last_pgno"] + 1) * stat["psize"]
            size = database_of(path).stat().st_size
            if size < used:
                raise DamagedFileError(
                    "An LMDB file ends early.", where=str(path), why=f"{size:,} bytes, {used:,} are in use"
                )
            with environment.begin() as transaction:
                yield Rows(transaction, path, stat["entries"])
    except (lmdb.Error, OSError) as e:
        raise DamagedFileError("An LMDB file cannot be read.", where=str(path), why=str(e)) from None
