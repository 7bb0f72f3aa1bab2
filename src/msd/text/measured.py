"""The prompts that images are measured with: those of the classes, of a protocol, or of held-out images."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from msd.config import Captions
from msd.errors import DataError, MissingFileError
from msd.store import Manifest, verify_sha256
from msd.text.formats import rows_of
from msd.text.prompts import decoded


def measured_prompts(captions: Manifest, settings: dict[str, Any]) -> list[str]:
    """Prompt i mod n of these n is the one of image i.

    Args:
        captions: of images with classes; or the data, with captions of held-out images.
        settings: of a bundle. Where conditions have no classes: ``prompts``, how many are needed, and perhaps
            ``captions``, a protocol's.

    Raises:
        MissingFileError, DamagedFileError: the protocol's captions are not there, or are others.
        DataError: there are too few.
    """
    if "prompts" not in settings:
        return captions.results["class_names"]
    if "captions" in settings:
        return read_captions(Captions.model_validate(settings["captions"]), settings["prompts"])
    return _first(captions.file("evaluation-captions"), settings["prompts"])


def read_captions(source: Captions, count: int) -> list[str]:
    """The first ``count`` lines of a protocol's captions; caption i belongs to image i.

    Raises:
        MissingFileError, DamagedFileError: there is no such file, or it is another one.
        DataError: there are fewer.
    """
    path = Path(source.path)
    if not path.is_file():
        raise MissingFileError(
            "The captions do not exist.",
            where=str(path),
            todo="Correct protocol.captions.path; `msd coco` fetches those of COCO.",
        )
    if source.sha256 is not None:
        verify_sha256(path, source.sha256)
    return _first(path, count, "txt")


def _first(path: Path, count: int, format: str | None = None) -> list[str]:
    captions = [decoded(row.text) or "" for row in islice(rows_of(path, format), count)]
    if len(captions) < count:
        raise DataError("There are fewer captions than images.", where=str(path), why=f"{len(captions)} for {count}")
    return captions
