"""Checkpoints to resume from: written aside, synced, renamed, then completed by a record with the sha256.

A checkpoint without its record, or whose bytes differ from it, does not count; the one before it is used and the
journal says so. Two are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from msd import store
from msd.errors import StorageError

KEEP = 2


def save(folder: Path, nimg: int, state: dict[str, Any], guard: Callable[[], None] = lambda: None) -> Path:
    """Write a checkpoint after ``nimg`` images and remove all but the newest two. Returns its path.

    Args:
        guard: called before anything is renamed or removed; what it raises leaves the folder as it was.

    Raises:
        StorageError: it could not be written; the checkpoints that were there are.
    """
    path = folder / f"checkpoint-{nimg:012d}.pt"
    try:
        store.write_with(path, lambda p: _write(state, p), guard)
        store.write_json(_record(path), store.file_record(path, folder), guard)
    except (OSError, RuntimeError) as e:
        cause = e.__context__ if isinstance(e.__context__, OSError) else e  # torch raises an error of its own over it
        raise StorageError(
            "A checkpoint could not be saved.",
            where=str(path),
            why=str(cause).splitlines()[0],
            todo="Make room, then run the same command again: it goes on from the checkpoint before.",
        ) from e
    # a later one is broken, or this run would have begun there; it does not displace what is whole
    for old in [p for p in _all(folder) if p <= path][:-KEEP]:
        _record(old).unlink(missing_ok=True)
        old.unlink()
    return path


def _write(state: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as f:  # torch's own way of opening a file keeps no cause of an error
        torch.save(state, f)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest valid checkpoint's state (None: there is none) and a line for each broken one that was skipped.

    Also removes what killed runs left of checkpoints they were writing: the caller holds the folder alone.
    """
    for unfinished in folder.glob(".*checkpoint-*"):
        unfinished.unlink(missing_ok=True)  # of the processes that train together each looks here
    skipped: list[str] = []
    for path in reversed(_all(folder)):
        try:
            record = json.loads(_record(path).read_text())
            if record["sha256"] != store.sha256_file(path):
                raise ValueError("its sha256 is not the recorded one")
            return torch.load(path, map_location="cpu", weights_only=True), skipped
        except (OSError, ValueError, KeyError, RuntimeError, EOFError) as e:
            skipped.append(f"skipped the checkpoint {path.name}: {e}")
    return None, skipped


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"))


def _record(path: Path) -> Path:
    return path.with_suffix(".json")
