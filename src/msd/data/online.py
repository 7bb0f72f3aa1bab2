"""Data sets at their official addresses: fetched at first use, verified, kept in the download folder.

``MSD_MIRROR`` names a folder whose files of the same names are taken first (``msd.download``).
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from msd.data.idx import idx_files
from msd.data.images import ImageSource, image_of
from msd.download import fetch
from msd.errors import DamagedFileError

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION = {  # images and labels of the two halves
    "train": (
        ("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_SHAPE = (3, 32, 32)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def fashion_mnist(half: str) -> ImageSource:
    """Fashion-MNIST, 28×28, 10 classes: 60,000 images to train, 10,000 to test (MIT licence)."""
    images, labels = (fetch(f"{FASHION_URL}/{name}", sha256) for name, sha256 in FASHION[half])
    return idx_files(images, labels)


def cifar10(half: str) -> ImageSource:
    """CIFAR-10, 32×32 RGB, 10 classes: 50,000 images to train, 10,000 to test."""
    return cifar_binary(fetch(CIFAR_URL, CIFAR_SHA256), half)


def cifar_binary(path: Path, half: str) -> ImageSource:
    """CIFAR-10's binary version: a tar of batches, each a row of records of one label and 3×32×32 bytes."""
    labels = np.array([label for label, _ in _records(path, half)], np.int64)

    def images() -> Iterator[Image.Image]:
        for _, pixels in _records(path, half):
            yield image_of(np.frombuffer(pixels, np.uint8).reshape(CIFAR_SHAPE))

    return ImageSource(
        str(path), labels, images, lambda i: f"{path}: {half} image {i}", len(CIFAR_CLASSES), CIFAR_CLASSES
    )


def _records(path: Path, half: str) -> Iterator[tuple[int, bytes]]:
    """Label and pixels of each record, in the order of the batches."""
    size = 1 + int(np.prod(CIFAR_SHAPE))
    with _open(path) as archive:
        for batch in CIFAR_BATCHES[half]:
            try:
                f: IO[bytes] | None = archive.extractfile(f"cifar-10-batches-bin/{batch}")
            except KeyError:
                f = None
            if f is None:
                raise DamagedFileError("A batch is missing.", where=f"{path}: {batch}")
            while record := f.read(size):
                if len(record) < size:
                    raise DamagedFileError("A batch ends early.", where=f"{path}: {batch}")
                yield record[0], record[1:]


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise DamagedFileError("A tar file cannot be read.", where=str(path), why=str(e)) from None
