"""Pictures in a folder or in a zip file: class ids from ``dataset.json`` (EDM's) or from the folders' names."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msd.data.images import UNLABELLED, ImageSource, readable
from msd.data.zips import open_zip, read_member
from msd.errors import DamagedFileError, DataError

LABELS = "dataset.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # by content: some files of ImageNet have another's suffix
MAX_PICTURE = 2**26  # bytes
MAX_LABELS = 2**28  # bytes; ImageNet's need 2²⁵·⁴


def edm_zip(path: Path) -> ImageSource:
    """A data set written by EDM's ``dataset_tool.py``: pictures, in the order of their names, and ``dataset.json``."""
    with open_zip(path) as archive:
        members = archive.namelist()
        names = _pictures(members)
        labels = np.full(len(names), UNLABELLED)
        if LABELS in members:
            labels = edm_labels(read_member(archive, LABELS, MAX_LABELS), names, path)

    def images() -> Iterator[Image.Image]:
        with open_zip(path) as archive:
            for name in names:
                yield open_picture(partial(read_member, archive, name, MAX_PICTURE), f"{path}: {name}")

    return ImageSource(str(path), labels, images, lambda i: f"{path}: {names[i]}")


def folder(path: Path) -> ImageSource:
    """Pictures in a folder for each class, whose id follows the sorted names; or EDM's data set as a folder."""
    before = len(os.path.join(path, ""))
    files = [os.path.join(at, name)[before:] for at, _, here in os.walk(path, followlinks=True) for name in here]
    names = _pictures(files)
    classes: tuple[str, ...] = ()
    if LABELS in files:  # then the folders have another meaning
        labels = edm_labels((path / LABELS).read_bytes(), names, path)
    else:
        classes = tuple(sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")))
        labels = _folder_labels(path, names, classes)

    def images() -> Iterator[Image.Image]:
        for name in names:
            yield open_picture((path / name).read_bytes, str(path / name))

    return ImageSource(str(path), labels, images, lambda i: str(path / names[i]), len(classes), classes)


def edm_labels(content: bytes, names: list[str], where: Path) -> NDArray[np.int64]:
    """Class ids (N,) of the named pictures from ``{"labels": [[name, class], …]}`` or ``{"labels": null}``.

    Raises:
        DamagedFileError: the text is nothing of this kind, or names a picture that is not there.
        DataError: a picture without a class.
    """
    try:
        entries = json.loads(content)["labels"]
        known: dict[str, Any] = dict(entries or [])
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise DamagedFileError(
            f"{LABELS} cannot be read.",
            where=f"{where}: {LABELS}",
            why=f"{type(e).__name__}: {e}",
            todo='It must be {"labels": [[name, class], …]}.',
        ) from None
    if entries is None:
        return np.full(len(names), UNLABELLED)
    for name in names:
        if type(known.get(name)) is not int:
            raise DataError(
                "A picture has no class.",
                where=f"{where}: {name}",
                why=f"{LABELS} says {known[name]!r}" if name in known else f"{LABELS} does not list it",
            )
    missing = known.keys() - set(names)
    if missing:
        raise DamagedFileError(
            f"A picture that {LABELS} lists is missing.",
            where=f"{where}: {min(map(str, missing))}",
            why=f"{len(missing)} are",
            todo="Fetch the data again.",
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def _folder_labels(path: Path, names: list[str], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Class ids (N,) from the first folder of each name; unlabelled if there are no folders."""
    if not classes:
        return np.full(len(names), UNLABELLED)
    ids = {name: i for i, name in enumerate(classes)}
    labels = np.array([ids.get(name.split(os.sep)[0], UNLABELLED) for name in names], dtype=np.int64)
    stray = np.flatnonzero(labels == UNLABELLED)
    if len(stray):
        raise DataError(
            "A picture is in no class's folder.", where=str(path / names[stray[0]]), todo="Move it into one."
        )
    empty = sorted(set(range(len(classes))) - set(labels.tolist()))
    if empty:
        raise DataError(
            "A class's folder has no pictures.", where=str(path / classes[empty[0]]), todo="Fill or remove it."
        )
    return labels


def _pictures(names: list[str]) -> list[str]:
    """The pictures among file names, sorted; hidden files and folders are left out."""
    return sorted(
        name
        for name in names
        if name.lower().endswith(SUFFIXES) and not any(p.startswith(".") for p in name.split("/"))
    )


def open_picture(read: Callable[[], bytes], name: str) -> Image.Image:
    """A picture of one of the ``FORMATS``; it is decoded when its pixels are used."""
    with readable(name):
        return Image.open(io.BytesIO(read()), formats=FORMATS)
