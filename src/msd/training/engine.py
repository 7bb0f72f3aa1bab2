"""The loop that runs a step object: resume, update, journal, checkpoint, stop on a signal. Knows no teacher."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from msd.errors import DivergedError, InterruptedRun
from msd.training import checkpoint
from msd.training.journal import Journal
from msd.training.step import Step

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how often, in images; ``log_every`` and ``checkpoint_every`` count updates.

    ``images_this_run`` ends the run earlier, as a signal would; None: no limit.
    """

    images: int
    log_every: int
    checkpoint_every: int
    images_this_run: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a finished run tells: wall-clock seconds over all attempts, and images trained on."""

    seconds: float
    nimg: int


def resolve_device(wanted: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def train(step: Step, folder: Path, schedule: Schedule, progress: Progress = lambda *_: None) -> Outcome:
    """Run ``step`` until ``schedule.images``, starting from the newest checkpoint in ``folder``.

    A run that was stopped at any moment and started again ends with the same bits as one that was not.

    Args:
        step: what to do at each update.
        folder: keeps checkpoints and the journal.
        schedule: when to stop, log and save.
        progress: called at log points with (images done, images in all, metrics).

    Raises:
        InterruptedRun: a signal came or ``images_this_run`` are done; a checkpoint was saved first.
        DivergedError: a logged value is not finite; the last checkpoint is kept.
    """
    journal = Journal(folder)
    state, skipped = checkpoint.load_newest(folder)
    for line in skipped:
        journal.write("warning", message=line)
        print(line, flush=True)
    nimg, before = 0, 0.0
    if state is not None:
        step.load_state_dict(state["step"])
        nimg, before = state["nimg"], state["seconds"]
    journal.write(
        "start",
        nimg=nimg,
        images=schedule.images,
        threads=torch.get_num_threads(),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
    )
    began, first = time.monotonic(), nimg

    def save() -> None:
        seconds = before + time.monotonic() - began
        path = checkpoint.save(folder, nimg, {"step": step.state_dict(), "nimg": nimg, "seconds": seconds})
        journal.write("checkpoint", nimg=nimg, file=path.name)

    with _StopRequest() as stop:
        while nimg < schedule.images:
            values = step(nimg)
            nimg += step.batch_size
            updates = nimg // step.batch_size
            if updates % schedule.log_every == 0 or nimg >= schedule.images:
                metrics = _read(values)
                seconds = before + time.monotonic() - began
                journal.write("progress", nimg=nimg, seconds=round(seconds, 3), metrics=_finite(metrics))
                bad = [name for name, value in metrics.items() if not math.isfinite(value)]
                if bad:
                    raise DivergedError(
                        "Training diverged.",
                        where=f"{folder}, after {nimg} images",
                        why=f"not finite: {', '.join(bad)}",
                        todo="Lower the learning rate; the last checkpoint is kept.",
                    )
                progress(nimg, schedule.images, metrics)
            reason = stop.requested
            if reason is None and schedule.images_this_run and nimg - first >= schedule.images_this_run:
                reason = "the limit of this run"
            if updates % schedule.checkpoint_every == 0 or nimg >= schedule.images or reason:
                save()
            if reason and nimg < schedule.images:
                journal.write("interrupted", nimg=nimg, signal=reason)
                raise InterruptedRun(
                    f"Stopped by {reason}; saved.",
                    where=str(folder),
                    todo="Run the same command again: it goes on from here.",
                )
    seconds = before + time.monotonic() - began
    journal.write("finish", nimg=nimg, seconds=round(seconds, 3))
    return Outcome(seconds=seconds, nimg=nimg)


def _read(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """One transfer from the device for all values."""
    stacked = torch.stack([v.detach().float().reshape(()) for v in values.values()]).tolist()
    return dict(zip(values, stacked, strict=True))


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class _StopRequest:
    """Remembers a signal until the loop comes to a step boundary. Schedulers send SIGUSR2 before a time limit."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self) -> None:
        self.requested: str | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)
