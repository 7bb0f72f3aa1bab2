"""Prompts as an archive: a folder of JSON lines in shards and, written last, ``manifest.json``. No PyTorch here.

Each shard can be read by whatever reads JSON lines, ``read_prompts`` among it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, overload

from msd import store
from msd.data.lmdb_rows import database_of
from msd.errors import ConfigError, DamagedFileError, DataError
from msd.text.formats import recognise
from msd.text.prompts import Prompt, PromptReport, read_prompts

MANIFEST = "manifest.json"
KIND = "prompts"
SHARD = 10_000  # prompts


def write_prompts(
    source: Path,
    out_folder: Path,
    *,
    format: str | None = None,
    column: str | None = None,
    strict: bool = False,
    keep_duplicates: bool = False,
    limit: int | None = None,
    shard_size: int = SHARD,
) -> store.Manifest:
    """Clean a source's prompts and write them as an archive; one shard is in memory at a time.

    Args:
        out_folder: a folder that holds no archive yet.
        limit: take so many prompts at most, the first ones.
        format, column, strict, keep_duplicates: see ``read_prompts``.

    Raises:
        ConfigError: an archive is there already.
        DataError: no prompt is left.
        MissingFileError, DamagedFileError, UnsafeFileError: see ``read_prompts``. There is no archive then.
    """
    source, out_folder = Path(source), Path(out_folder)
    if (out_folder / MANIFEST).exists():
        raise ConfigError(
            "The folder is in use already.", where=str(out_folder / MANIFEST), todo="Name another, or delete it first."
        )
    format, report = format or recognise(source), PromptReport()
    cleaning = {"format": format, "column": column, "strict": strict, "keep_duplicates": keep_duplicates}
    prompts = read_prompts(source, report, format=format, column=column, strict=strict, keep_duplicates=keep_duplicates)
    return archive_prompts(
        islice(prompts, limit),
        report,
        out_folder,
        settings={"source": source.name, **cleaning, "limit": limit},
        source_sha256=store.sha256_file(database_of(source)),
        shard_size=shard_size,
    )


def archive_prompts(
    prompts: Iterator[Prompt],
    report: PromptReport,
    out_folder: Path,
    *,
    settings: dict[str, Any],
    source_sha256: str,
    shard_size: int = SHARD,
) -> store.Manifest:
    """Write cleaned prompts as an archive; one shard is in memory at a time.

    Args:
        report: that the prompts fill while they are taken.
        settings: how they came about, for the manifest.
        source_sha256: of what they came from.

    Raises:
        DataError: there is none.
    """
    files, whole = dict[str, Path](), hashlib.sha256()
    while shard := list(islice(prompts, shard_size)):
        name = _name(len(files) * shard_size)
        files[name] = out_folder / f"{name}.jsonl"
        text = "".join(map(_line, shard))
        whole.update(text.encode())
        store.write_text(files[name], text)
    if not files:
        raise DataError("There are no prompts.", where=str(settings["source"]), why=str(report))
    return store.Manifest.write(
        out_folder / MANIFEST,
        kind=KIND,
        settings={**settings, "shard_size": shard_size},
        files=files,
        results={
            "prompts": report.kept,
            "sha256": whole.hexdigest(),
            "source_sha256": source_sha256,
            "report": report.as_dict(),
        },
    )


def open_prompts(manifest: store.Manifest) -> PromptArchive:
    """The archive of a manifest.

    Raises:
        DamagedFileError: the manifest is that of something else.
    """
    if manifest.body["kind"] != KIND:
        raise DamagedFileError("A manifest is not that of prompts.", where=str(manifest.path))
    return PromptArchive(manifest)


class PromptArchive:
    """Prompts on disk. One shard is in memory at a time, checked against its sha256 when it is read.

    Reading in order is fast; a jump into another shard reads all of that.

    Attributes:
        manifest: of the archive.
        sha256: digest of all prompts with their rows, whatever the size of the shards.
    """

    def __init__(self, manifest: store.Manifest) -> None:
        self.manifest, self.sha256 = manifest, str(manifest.results["sha256"])
        self._length, self._shard_size = int(manifest.results["prompts"]), int(manifest.settings["shard_size"])
        self._first, self._held = -1, list[Prompt]()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, i: int) -> Prompt: ...
    @overload
    def __getitem__(self, i: slice) -> list[Prompt]: ...
    def __getitem__(self, i: int | slice) -> Prompt | list[Prompt]:
        positions = range(self._length)[i]
        return self._at(positions) if isinstance(positions, int) else [self._at(p) for p in positions]

    def __iter__(self) -> Iterator[Prompt]:
        return map(self._at, range(self._length))

    def _at(self, position: int) -> Prompt:
        first = position - position % self._shard_size
        if first != self._first:
            lines = self.manifest.file(_name(first)).read_bytes().removesuffix(b"\n").split(b"\n")
            self._held, self._first = [_prompt(line) for line in lines], first
        return self._held[position - first]


def texts(prompts: Iterable[Prompt]) -> list[str]:
    """What an encoder takes."""
    return [prompt.text for prompt in prompts]


def _name(first: int) -> str:
    return f"prompts-{first:09d}"


def _line(prompt: Prompt) -> str:
    named = {"prompt": prompt.text, "source_row": prompt.source_row}
    return store.canonical_json(named | ({} if prompt.image_id is None else {"image_id": prompt.image_id})) + "\n"


def _prompt(line: bytes) -> Prompt:
    record = json.loads(line)
    return Prompt(record["prompt"], record["source_row"], record.get("image_id"))
