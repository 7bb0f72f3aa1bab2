"""Work that is done in shards, files that are each a function of the number of their first item.

A job that dies loses one shard's work at most. Holds no lease and heeds no signal itself: whoever calls hands in what
does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msd import store
from msd.errors import InterruptedRun, MsdError

Progress = Callable[[int, int, dict[str, float]], None]


class Shards:
    """Files of one kind in a folder, with a record of bytes and identity beside each.

    Args:
        folder: of the files.
        name: what their names begin with.
        suffix: of their names, ``.npy`` say.
        count: items in all.
        size: items of a shard; the last one may have fewer.
        identity: of what decides the bytes.
    """

    def __init__(self, folder: Path, name: str, suffix: str, *, count: int, size: int, identity: str) -> None:
        self.count, self.size, self._identity = count, size, identity
        self.paths = {first: folder / f"{name}-{first:09d}{suffix}" for first in range(0, count, size)}

    @property
    def files(self) -> dict[str, Path]:
        """For a manifest: name → file, in order."""
        return {path.stem: path for path in self.paths.values()}

    def fill(
        self,
        write: Callable[[Path, int, int], Mapping[str, Any] | None],
        *,
        what: str,
        guard: Callable[[], None] = lambda: None,
        stop: Callable[[], str | None] = lambda: None,
        progress: Progress = lambda *_: None,
    ) -> None:
        """Write the shards that are not whole yet.

        Args:
            write: (path, number of the first item, number of items): write a shard; what it returns goes into its
                record.
            what: what became of the items, for messages: "prompts are encoded".
            guard: called before a record is put in place; it raises if this process may no longer write.
            stop: why to stop, or None; asked after each shard.
            progress: told of items done, all items, and nothing.

        Raises:
            InterruptedRun: there was a reason to stop; the shards that are whole are kept.
        """
        missing = [first for first, path in self.paths.items() if not self._is_whole(path)]
        for first in missing:
            path, number = self.paths[first], min(self.size, self.count - first)
            further = write(path, first, number) or {}
            record = store.file_record(path, path.parent) | {"identity": self._identity, **further}
            store.write_json(_record(path), record, guard)
            progress(first + number, self.count, {})
            if (reason := stop()) and first != missing[-1]:
                raise InterruptedRun(
                    f"Stopped; {first + number} of {self.count} {what}.",
                    where=str(path.parent),
                    why=reason,
                    todo="Run the same command again: it goes on from here.",
                )

    def total(self, key: str) -> int:
        """Sum of a number in all records."""
        return sum(store.read_json(_record(path))[key] for path in self.paths.values())

    def _is_whole(self, path: Path) -> bool:
        """Whether a shard is there with the bytes that were written, of the same identity."""
        try:
            record = store.read_json(_record(path))
            if record["identity"] != self._identity:
                return False
            store.verify_sha256(path, record["sha256"])
        except (MsdError, KeyError, TypeError):
            return False
        return True


def _record(path: Path) -> Path:
    return path.with_suffix(".json")
