"""One writer per run directory, on any file system that creates files exclusively.

A lease is the file ``lease-<number>.json`` with the highest number; taking it means creating the next one, which only
one process can. Its holder touches it every few seconds and looks before every rename whether a higher number has
appeared: a process that a scheduler believed dead, or that was stopped for minutes, then ends and writes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from msd import store
from msd.errors import LeaseLostError, StorageError

HEARTBEAT = 5.0  # seconds between touches
SILENCE = 60.0  # seconds without one after which a holder on another machine counts as dead
LOOK_EVERY = 0.5  # seconds


class Lease:
    """Hold ``folder`` alone, or wait for it. Use as a context.

    A holder is out if it gave the lease back, if its process on this machine is gone, if it was silent for a minute on
    another one, or if it is an earlier start of this very SLURM job.

    Args:
        folder: made if need be.
        on_wait: told once if another process holds the folder.
        silence: see ``SILENCE``.
        work: what the holder makes, for those who look.
    """

    def __init__(
        self, folder: Path, on_wait: Callable[[], None] = lambda: None, silence: float = SILENCE, work: str = ""
    ) -> None:
        self.folder, self.on_wait, self.silence, self.work = Path(folder), on_wait, silence, work
        self.number = 0
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lease:
        self.folder.mkdir(parents=True, exist_ok=True)
        told = False
        heard: tuple[int, float] = (0, 0.0)  # the holder's number and last touch …
        since = time.monotonic()  # … and when they were first seen
        while True:
            held = _newest(self.folder)
            if held == 0 or self._is_out(held, time.monotonic() - since):
                if self._take(held + 1):
                    break
                continue
            touched = _touched(_path(self.folder, held))
            if heard != (held, touched):
                heard, since = (held, touched), time.monotonic()
            if not told:
                self.on_wait()
                told = True
            time.sleep(LOOK_EVERY)
        store.sweep(self.folder)
        self._heart.start()
        return self

    def check(self) -> None:
        """Call before every rename.

        Raises:
            LeaseLostError: another process has taken the folder over.
        """
        if _newest(self.folder) != self.number:
            raise LeaseLostError(
                "Another process has taken this run over; this one stops and writes nothing more.",
                where=str(self.folder),
                why="it was taken for dead: its job was started again, or it gave no sign of life for a minute",
                todo="Nothing: the other process goes on from the last checkpoint.",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join()
        if isinstance(error, (OSError, StorageError)):
            self.check()  # who took the folder over has removed the files that this one was writing
        if _newest(self.folder) == self.number:
            with contextlib.suppress(OSError):  # a full disk; the process ends anyway
                store.write_json(_path(self.folder, self.number), {**self._record(), "released": True})

    def _record(self) -> dict[str, Any]:
        return {**_myself(), "work": self.work}

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(_path(self.folder, self.number))

    def _take(self, number: int) -> bool:
        """Create the lease of this number; whether this process has it."""
        try:
            with open(_path(self.folder, number), "x", encoding="utf-8") as f:
                json.dump(self._record(), f)
        except FileExistsError:
            return False
        if _newest(self.folder) != number:  # numbers below the newest may have been tidied away before
            return False
        self.number = number
        for path in self.folder.glob("lease-*.json"):
            if _number(path) < number:
                path.unlink(missing_ok=True)
        return True

    def _is_out(self, number: int, silent_for: float) -> bool:
        path = _path(self.folder, number)
        try:
            holder = json.loads(path.read_text())
        except FileNotFoundError:
            return False  # tidied away: look again
        except ValueError:
            return silent_for > self.silence  # created, its content not yet here
        if holder.get("released"):
            return True
        me = _myself()
        if me["slurm_job"] is not None and me["slurm_job"] == holder["slurm_job"] and me["start"] > holder["start"]:
            return True
        return is_gone(holder, silent_for, self.silence)


def is_gone(holder: dict[str, Any], silent_for: float, silence: float = SILENCE) -> bool:
    """Whether a holder that has not given its lease back is dead, or counts as dead after ``silent_for`` seconds."""
    if holder["machine"] == _machine():
        return not _alive(holder["process"])
    return silent_for > silence


def _machine() -> list[str]:
    return [socket.gethostname(), _boot(), _process_numbers()]


def _myself() -> dict[str, Any]:
    return {
        "machine": _machine(),
        "process": [os.getpid(), _started(os.getpid())],
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "start": [int(os.environ.get(name) or 0) for name in ("SLURM_JOB_START_TIME", "SLURM_RESTART_COUNT")],
    }


def _boot() -> str:
    """Tells machines of one name apart, and a machine before and after it was started again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process_numbers() -> str:
    """Tells containers of one machine apart: a process's number means nothing outside of its namespace."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was: setting the clock changes nothing. None: gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _alive(process: list[int]) -> bool:
    pid, started = process
    found = _started(pid)
    return found is not None and found == started


def newest(folder: Path) -> tuple[dict[str, Any], float] | None:
    """The record of who holds, or last held, a folder, and unix seconds of the last sign of life. None: nobody did."""
    path = _path(folder, _newest(folder))
    try:
        return json.loads(path.read_text()), path.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return None


def _newest(folder: Path) -> int:
    return max((_number(path) for path in folder.glob("lease-*.json")), default=0)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("lease-"))


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number:06d}.json"


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
