"""Pictures with captions: JSON lines that name the pictures, or COCO's ``captions_*.json`` beside their folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from msd.data.images import ImageSource
from msd.data.pictures import open_picture
from msd.errors import DamagedFileError, DataError, MissingFileError

LINES = "metadata.jsonl"  # the name that Hugging Face's image folders give it
COLUMNS = ("caption", "prompt", "text")  # the first of them that is there


def captioned(path: Path) -> ImageSource:
    """The pictures that a file names, each with its first caption, in the file's order.

    Args:
        path: JSON lines with ``file_name``, relative to the file's folder, and ``text``, ``caption`` or ``prompt``; a
            folder with ``metadata.jsonl``; or COCO's captions, whose pictures lie beside it in the folder that its name
            ends with (``captions_val2014.json``: ``val2014/``).

    Raises:
        DamagedFileError, DataError: the file has not this form.
        MissingFileError: a picture that it names is not there.
    """
    file = path / LINES if path.is_dir() else path
    rows = _coco(file) if file.suffix == ".json" else _lines(file)
    for i, (picture, _) in enumerate(rows):
        if not picture.is_file():
            raise MissingFileError(
                "A picture that has a caption is missing.", where=str(picture), why=f"{file}: row {i}"
            )

    def images() -> Iterator[Image.Image]:
        for picture, _ in rows:
            yield open_picture(picture.read_bytes, str(picture))

    return ImageSource(
        where=str(file),
        labels=np.zeros(len(rows), np.int64),
        images=images,
        name=lambda i: str(rows[i][0]),
        num_classes=1,
        captions=tuple(caption for _, caption in rows),
    )


def _lines(path: Path) -> list[tuple[Path, str]]:
    said: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(
            "There is no file of captions.", where=str(path), todo='Write lines as {"file_name": …, "text": …}.'
        ) from None
    except UnicodeDecodeError as e:
        raise DamagedFileError("A file of captions is not UTF-8.", where=str(path), why=str(e)) from None
    for number, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        where = f"{path}: row {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DamagedFileError("A line is no JSON.", where=where, why=str(e)) from None
        column = next((name for name in COLUMNS if isinstance(record, dict) and name in record), None)
        if column is None or not (isinstance(record.get("file_name"), str) and isinstance(record[column], str)):
            raise DataError("A line names no picture with a caption.", where=where, todo="Give file_name and text.")
        said.setdefault(record["file_name"], record[column])
    return [(path.parent / name, caption) for name, caption in said.items()]


def _coco(path: Path) -> list[tuple[Path, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        said: dict[str, str] = {}
        for annotation in content["annotations"]:
            said.setdefault(names[annotation["image_id"]], str(annotation["caption"]))
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise DamagedFileError(
            "A file holds no COCO captions.",
            where=str(path),
            why=f"{type(e).__name__}: {e}",
            todo="Take captions_*.json.",
        ) from None
    beside = path.parent / path.stem.rpartition("_")[2]
    folder = beside if beside.is_dir() else path.parent
    return [(folder / name, caption) for name, caption in said.items()]
