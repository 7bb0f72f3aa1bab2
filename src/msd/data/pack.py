"""Any source as one archive: a folder with ``images.npy``, ``labels.npy`` and, written last, ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from msd.data.images import ImageSource, Shaping, image_of
from msd.data.stream import Progress, write_images
from msd.errors import ConfigError, DamagedFileError
from msd.store import Manifest

MANIFEST = "manifest.json"
KIND = "archive"


def pack(
    source: ImageSource, out: Path, settings: dict[str, Any], shaping: Shaping, progress: Progress | None = None
) -> Manifest:
    """Write an archive.

    Args:
        source: with its classes settled.
        out: a folder that holds no archive yet.
        settings: where the images come from, for the manifest.

    Raises:
        ConfigError: an archive is there already.
        DataError, DamagedFileError: an image is not as it should be; then there is no archive.
    """
    if (out / MANIFEST).exists():
        raise ConfigError(
            "The folder is in use already.", where=str(out / MANIFEST), todo="Name another, or delete it first."
        )
    written = write_images(source, out, {"": np.ones(len(source), bool)}, shaping=shaping, progress=progress)
    results = {
        "sha256": written.sha256,
        "num_classes": source.num_classes,
        "class_names": source.class_names,
        "image_shape": written.image_shape,
        "images": len(source),
    }
    return Manifest.write(out / MANIFEST, kind=KIND, settings=settings, files=written.files, results=results)


def archive(path: Path) -> ImageSource:
    """What ``pack`` wrote, both files checked against their sha256.

    Raises:
        MissingFileError, DamagedFileError: a file is missing or has other bytes than when it was packed.
    """
    manifest = Manifest.read(path / MANIFEST)
    if manifest.body["kind"] != KIND:
        raise DamagedFileError("A manifest is not that of an archive.", where=str(manifest.path))
    images = np.load(manifest.file("images"), mmap_mode="r")
    return ImageSource(
        where=str(path),
        labels=np.load(manifest.file("labels")),
        images=lambda: map(image_of, images),
        name=lambda i: f"{path}: image {i}",
        num_classes=manifest.results["num_classes"],
        class_names=tuple(manifest.results["class_names"]),
    )
