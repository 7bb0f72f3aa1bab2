"""The formats that prompts come in: each a function from a path to rows, in the order of the file. No PyTorch here.

A row is the text as it stands, bytes where the format allows bytes that are no UTF-8. Nothing is judged here but the
file's form; ``msd.text.prompts`` cleans.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from msd.data.captioned import COLUMNS
from msd.data.lmdb_rows import DATABASE, open_rows
from msd.errors import ConfigError, DamagedFileError, DataError, MissingFileError
from msd.text.prompt_pickle import pickled_texts

MAX_LINE = 2**20  # bytes; a file without line ends must not fill the memory
BATCH = 4096  # rows of a parquet file


class Row(NamedTuple):
    """One row: the text, None where there is none, and the image that it belongs to, if the source says."""

    text: str | bytes | None
    image_id: int | str | None = None


def recognise(path: Path) -> str:
    """The format that a path looks like.

    Raises:
        MissingFileError: there is nothing.
        ConfigError: it looks like none.
    """
    if not path.exists():
        raise MissingFileError("The prompts do not exist.", where=str(path), todo="Check the path.")
    if path.is_dir():
        found = "lmdb" if (path / DATABASE).exists() else None
    else:
        found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ConfigError(
            "It does not show what format these prompts have.", where=str(path), todo=f"Say it: {', '.join(FORMATS)}."
        )
    return found


def rows_of(path: Path, format: str | None = None, column: str | None = None) -> Iterator[Row]:
    """All rows of a source.

    Args:
        format: one of ``FORMATS``; None: as the suffix says.
        column: of a table; None: the first of ``COLUMNS`` that it has.

    Raises:
        MissingFileError, ConfigError: see ``recognise``.
        DamagedFileError, DataError, UnsafeFileError: the file has not the form that it should have.
    """
    known = recognise(path) if format is None else format
    if known not in FORMATS:
        raise ConfigError(f"There is no format {known!r} of prompts.", where=str(path), why=f"known: {[*FORMATS]}")
    if not path.exists():
        raise MissingFileError("The prompts do not exist.", where=str(path), todo="Check the path.")
    return FORMATS[known](path, column)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends, nor the mark that some editors put before the first."""
    with open(path, "rb") as f:
        start = len(codecs.BOM_UTF8) if f.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        f.seek(start)
        number = 0
        while line := f.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise DamagedFileError(
                    "A line is too long.", where=f"{path}: row {number}", why=f"over {MAX_LINE:,} bytes"
                )
            yield line.removesuffix(b"\n").removesuffix(b"\r")
            number += 1


def _txt(path: Path, column: str | None) -> Iterator[Row]:
    return map(Row, _lines(path))


def _jsonl(path: Path, column: str | None) -> Iterator[Row]:
    for number, line in enumerate(_lines(path)):
        where = f"{path}: row {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            yield Row(line)
            continue
        if not text.strip():
            yield Row(None)
            continue
        record = _json(text, where)
        if not isinstance(record, dict):
            raise DataError("A line is not a JSON object.", where=where)
        column = column or _column(list(record), where)
        if column not in record:
            raise DataError(f"A line has no {column!r}.", where=where, why=f"it has {sorted(record)}")
        yield _row(record, column, where)


def _coco(path: Path, column: str | None) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DamagedFileError("A file of captions is not UTF-8.", where=str(path), why=str(e)) from None
    content = _json(text, str(path))
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise DataError("A file holds no COCO captions.", where=str(path), why="it has no list `annotations`")
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotation {number}"
        if not isinstance(annotation, dict) or "caption" not in annotation:
            raise DataError("An annotation has no caption.", where=where, todo="Take captions_*.json, not instances.")
        yield _row(annotation, "caption", where)


def _parquet(path: Path, column: str | None) -> Iterator[Row]:
    """One row group in memory at a time."""
    import pyarrow as pa  # as slow as PyTorch to import
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = column or _column(names, str(path))
            if column not in names:
                raise DataError(f"A table has no column {column!r}.", where=str(path), why=f"it has {names}")
            wanted = [column] + (["image_id"] if "image_id" in names else [])
            for batch in file.iter_batches(batch_size=BATCH, columns=wanted):
                texts = batch.column(column)
                if pa.types.is_dictionary(texts.type):
                    texts = texts.dictionary_decode()
                if not (pa.types.is_large_string(texts.type) or pa.types.is_string(texts.type)):
                    raise DataError(f"The column {column!r} holds no text.", where=str(path), why=str(texts.type))
                # as bytes: pyarrow does not look whether they are UTF-8
                texts = texts.cast(pa.large_binary()).to_pylist()
                ids = batch.column("image_id").to_pylist() if len(wanted) > 1 else [None] * len(texts)
                yield from map(Row, texts, ids)
    except (pa.ArrowException, OSError) as e:
        raise DamagedFileError("A parquet file cannot be read.", where=str(path), why=str(e)) from None


def _pickle(path: Path, column: str | None) -> Iterator[Row]:
    return map(Row, pickled_texts(path))


def _lmdb(path: Path, column: str | None) -> Iterator[Row]:
    """The prompts of DMD2's latents; prompt i belongs to latent i."""
    with open_rows(path) as rows:
        count = rows.shape("latents")[0]
        if rows.has("prompts") and rows.shape("prompts")[0] != count:
            raise DataError("There are not as many prompts as latents.", where=str(path))
        for i in range(count):
            yield Row(rows.content("prompts", i))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DamagedFileError("This is not JSON.", where=where, why=str(e)) from None


def _column(names: list[str], where: str) -> str:
    found = next((name for name in COLUMNS if name in names), None)
    if found is None:
        raise DataError(
            "It does not show where the prompts are.",
            where=where,
            why=f"there is {sorted(names)}, none of {', '.join(COLUMNS)}",
            todo="Name the column.",
        )
    return found


def _row(record: dict[str, Any], column: str, where: str) -> Row:
    text, image_id = record[column], record.get("image_id")
    if not isinstance(text, str | None):
        raise DataError(f"{column!r} is not text.", where=where, why=type(text).__name__)
    return Row(text, image_id if isinstance(image_id, int | str) else None)


FORMATS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    "txt": _txt,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "coco": _coco,
    "pickle": _pickle,
    "lmdb": _lmdb,
}
SUFFIXES = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".json": "coco",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".mdb": "lmdb",
}
