"""The journal: one line of JSON per event, keyed by images seen. Trackers read it; training needs none of them."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msd.errors import StorageError


class Journal:
    """Appends events to ``events.jsonl``; each line carries the attempt and the time.

    Args:
        folder: where.
        active: write nothing if not; of the processes that train together the first one writes.
        guard: called before every line; raises if the folder is another's.
    """

    def __init__(self, folder: Path, active: bool = True, guard: Callable[[], None] = lambda: None) -> None:
        self.path, self.active, self.guard = folder / "events.jsonl", active, guard
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            self._end_cut_line()
        self.attempt = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(2)}"

    def _end_cut_line(self) -> None:
        """A crash may have cut the last line off: end it, or this attempt's first event would be lost with it."""
        with open(self.path, "ab+") as f:
            if f.tell() and os.pread(f.fileno(), 1, f.tell() - 1) != b"\n":
                f.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Raises:
            StorageError: it could not be written; a line that is cut off does not count.
        """
        if not self.active:
            return
        self.guard()
        line = json.dumps({"event": event, "attempt": self.attempt, "time": round(time.time(), 3), **fields})
        try:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(line + "\n")
        except OSError as e:
            raise StorageError(
                "The journal could not be written.",
                where=str(self.path),
                why=e.strerror or str(e),
                todo="Make room, then run the same command again: it goes on from the last checkpoint.",
            ) from e


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal; a line cut off by a crash is passed over."""
    with open(path, encoding="utf-8") as f:
        for line in f:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def metrics(path: Path) -> dict[int, dict[str, float]]:
    """Images seen → what was measured there. A replayed update overwrites its first reading, so each stands once."""
    by_nimg: dict[int, dict[str, float]] = {}
    for event in read(path):
        if event["event"] == "progress":
            by_nimg[event["nimg"]] = event["metrics"]
    return dict(sorted(by_nimg.items()))
