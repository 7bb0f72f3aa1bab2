"""Images from a source to ``.npy`` files, one image in memory at a time, all files or none."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from msd.data.images import AS_IT_IS, ImageSource, Shaping, arrays
from msd.errors import DamagedFileError
from msd.store import atomic_write

Progress: TypeAlias = Callable[[int, int, dict[str, float]], None]  # images done, of how many, nothing more
SECONDS = 1.0  # between two reports of progress: short work is silent


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: name → path, as a manifest lists them.
        sha256: of the content: the bytes of all images (C, H, W) uint8, then of all labels int64. The same images in
            the same order have the same digest, whatever source they come from.
        image_shape: (C, H, W).
    """

    files: dict[str, Path]
    sha256: str
    image_shape: tuple[int, ...]


def write_images(
    source: ImageSource,
    folder: Path,
    parts: Mapping[str, NDArray[np.bool_]],
    expected: str | None = None,
    shaping: Shaping = AS_IT_IS,
    progress: Progress | None = None,
) -> Written:
    """Write ``<part>images.npy`` (M, C, H, W) uint8 and ``<part>labels.npy`` (M,) int64 of each part.

    Args:
        parts: prefix of the files' names → which of the N images, (N,) bool.
        expected: the sha256 that the content must have, if it is known.

    Raises:
        DataError, DamagedFileError: an image is not as it should be, or the content is not the expected one; then
            no file is written or changed.
    """
    paths = {f"{part}{name}": folder / f"{part}{name}.npy" for part in parts for name in ("images", "labels")}
    digest, shape = hashlib.sha256(), ()
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(path, "wb")) for name, path in paths.items()}
        for i, image in enumerate(_told(arrays(source, shaping), len(source), progress)):
            if i == 0:
                shape = image.shape
                for part, mask in parts.items():
                    header = {"descr": "|u1", "fortran_order": False, "shape": (int(mask.sum()), *shape)}
                    np.lib.format.write_array_header_1_0(files[f"{part}images"], header)
            content = image.tobytes()
            digest.update(content)
            for part, mask in parts.items():
                if mask[i]:
                    files[f"{part}images"].write(content)
        for part, mask in parts.items():
            np.save(files[f"{part}labels"], source.labels[mask])
        digest.update(source.labels.tobytes())
        if expected not in (None, digest.hexdigest()):
            raise DamagedFileError(
                "The images or labels are not the ones that were meant.",
                where=source.where,
                why=f"the sha256 of their content is {digest.hexdigest()}, expected {expected}",
                todo="Fetch the data again, or correct `sha256`.",
            )
    return Written(paths, digest.hexdigest(), shape)


def _told(images: Iterable[NDArray[np.uint8]], total: int, progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    """The images as they come, with a word on progress now and then."""
    due, told = time.monotonic() + SECONDS, False
    for done, image in enumerate(images, start=1):
        yield image
        if progress and (time.monotonic() > due or (told and done == total)):
            progress(done, total, {})
            due, told = time.monotonic() + SECONDS, True
