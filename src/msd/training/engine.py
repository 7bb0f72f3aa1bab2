"""The loop that runs a step object: resume, update, journal, checkpoint, stop on a signal. Knows no teacher."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msd import ranks
from msd.data.archive import to_uint8
from msd.data.grid import save_grid
from msd.errors import ConfigError, DivergedError, InterruptedRun
from msd.training import checkpoint, journal
from msd.training.journal import Journal
from msd.training.ledger import counted_flops
from msd.training.sentinels import Sentinels
from msd.training.signals import ENOUGH, TIME_IS_UP, StopRequest
from msd.training.step import Step

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how often, in images; the ``*_every`` count updates.

    Attributes:
        images_this_run: ends the run earlier, as a signal would; None: no limit.
        snapshot_every: for the pictures and exports on the way; None: none.
        give_up_after: so many updates in a row without a finite gradient end the run.
    """

    images: int
    log_every: int
    checkpoint_every: int
    images_this_run: int | None = None
    snapshot_every: int | None = None
    give_up_after: int = 20


@dataclass(frozen=True)
class Outcome:
    """What a finished run tells.

    Attributes:
        seconds: wall-clock time over all attempts.
        nimg: images trained on.
        counts: further progress, see ``Step.counts``.
        flops: of all updates; a multiplication and an addition count as two, recomputation counts.
    """

    seconds: float
    nimg: int
    counts: dict[str, int]
    flops: int


@dataclass(frozen=True)
class Hooks:
    """What the job around the engine wants to know or do.

    Attributes:
        progress: called at log points with (images done, images in all, metrics).
        guard: called before every rename; raises if the folder is another's.
        export: (step, folder): write the networks to use, for a snapshot on the way.
    """

    progress: Progress = lambda *_: None
    guard: Callable[[], None] = lambda: None
    export: Callable[[Any, Path], Any] = lambda *_: None


def resolve_device(wanted: str) -> torch.device:
    """This process's device; ``auto`` is the GPU where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return ranks.local_device(torch.device(wanted))


def train(step: Step, folder: Path, schedule: Schedule, hooks: Hooks | None = None) -> Outcome:
    """Run ``step`` until ``schedule.images``, starting from the newest checkpoint in ``folder``.

    A run that was stopped at any moment and started again ends with the same bits as one that was not.

    Args:
        step: what to do at each update.
        folder: keeps checkpoints, the journal and pictures.
        schedule: when to stop, log and save.
        hooks: see ``Hooks``.

    Raises:
        ConfigError: the time limit leaves room for one update only.
        InterruptedRun: a signal came or ``images_this_run`` are done; a checkpoint was saved first.
        DivergedError: no finite gradient for too long, or weights that are not finite; the last checkpoint is kept.
        StorageError: a checkpoint could not be written; the one before is kept.
        LeaseLostError: another process has taken the folder over.
    """
    run = _Run(step, folder, schedule, hooks or Hooks())
    with StopRequest() as stop:
        while run.nimg < schedule.images:
            run.update()
            done = run.nimg >= schedule.images
            if run.is_due(schedule.log_every) or done:
                run.log()
            reason = run.reason_to_stop(stop)
            if run.is_due(schedule.checkpoint_every) or done or reason:
                run.save()
            if run.is_due(schedule.snapshot_every) and not done:
                run.snapshot()
            if reason == TIME_IS_UP and not done and run.has_just_begun:
                raise ConfigError(
                    "The time limit leaves room for a single update.",
                    where=str(folder),
                    why="starting takes up the rest; the update is saved",
                    todo="Ask for a longer walltime (runtime), or lower compute.spare_seconds.",
                )
            if reason and not done:
                run.journal.write("interrupted", nimg=run.nimg, signal=reason)
                raise InterruptedRun(
                    "Stopped and saved.",
                    where=str(folder),
                    why=reason,
                    todo="Run the same command again: it goes on from here.",
                )
    seconds = run.seconds  # the picture is no training
    run.draw("picture.png")
    run.journal.write("finish", nimg=run.nimg, seconds=round(seconds, 3))
    return Outcome(seconds, run.nimg, step.counts(run.nimg), run.flops)


class _Run:
    """One attempt: where it stands, and what it does at each point of its schedule."""

    def __init__(self, step: Step, folder: Path, schedule: Schedule, hooks: Hooks) -> None:
        self.step, self.folder, self.schedule, self.hooks = step, folder, schedule, hooks
        self.journal = Journal(folder, ranks.is_first(), hooks.guard)
        self.nimg, self.flops_per_update, self._before = 0, 0, 0.0
        state, skipped = checkpoint.load_newest(folder)
        for line in skipped:
            self._warn(line)
        if state is not None:
            step.load_state_dict(ranks.spread_state(state["step"], step.state_dict()))
            self.nimg, self._before, self.flops_per_update = state["nimg"], state["seconds"], state["flops_per_update"]
        past = journal.metrics(self.journal.path) if self.journal.path.exists() else {}
        self.sentinels = Sentinels(step.watches, {nimg: m for nimg, m in past.items() if nimg <= self.nimg})
        self._first = self.nimg
        self._began = self._logged_at = time.monotonic()
        self._logged_nimg, self._logged_wait = self.nimg, 0.0
        self.journal.write(
            "start",
            nimg=self.nimg,
            images=schedule.images,
            threads=torch.get_num_threads(),
            processes=ranks.world(),
            device=str(step.draws.device),
            slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        )

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        return self._before + time.monotonic() - self._began

    @property
    def updates(self) -> int:
        return self.nimg // self.step.batch_size

    @property
    def flops(self) -> int:
        return self.updates * self.flops_per_update

    @property
    def has_just_begun(self) -> bool:
        """Whether this attempt has made one update."""
        return self.nimg - self._first == self.step.batch_size

    def is_due(self, every: int | None) -> bool:
        return every is not None and self.updates % every == 0

    def update(self) -> None:
        if self.flops_per_update:
            self.values = self.step(self.nimg)
        else:
            with counted_flops() as count:
                self.values = self.step(self.nimg)
            self.flops_per_update = int(ranks.total(torch.tensor(count.flops)))
        self.nimg += self.step.batch_size

    def log(self) -> None:
        """Read the device, for the first time since the last call; journal, warn, give up."""
        names, updaters = list(self.values), self.step.updaters
        means = ranks.total(_stack(list(self.values.values())))
        own = [_stack([u.norm, u.skipped, u.skipped_in_a_row]) for u in updaters.values()]
        numbers = torch.cat([means, *own]).tolist()
        metrics = dict(zip(names, numbers, strict=False))
        state: dict[str, Any] = {**self.step.counts(self.nimg), "flops": self.flops}
        in_a_row = {}
        for i, (name, updater) in enumerate(updaters.items()):
            prefix = f"{name}_" if name else ""
            norm, skipped, in_a_row[name] = numbers[len(names) + 3 * i :][:3]
            metrics[f"{prefix}gradient_norm"] = norm
            state[f"{prefix}learning_rate"] = updater.learning_rate
            state[f"{prefix}skipped_updates"] = int(skipped)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.journal.write(
            "progress", nimg=self.nimg, seconds=round(self.seconds, 3), metrics=finite, state=state, speed=self._speed()
        )
        for line in self.sentinels.warnings(finite):
            self._warn(line)
        stuck = [name or "network" for name, count in in_a_row.items() if count >= self.schedule.give_up_after]
        if stuck:
            self._give_up(
                f"no finite gradient for {', '.join(stuck)} in the last {self.schedule.give_up_after} updates"
            )
        self.hooks.progress(self.nimg, self.schedule.images, metrics)

    def _speed(self) -> dict[str, float]:
        now, wait = time.monotonic(), self.step.data_wait
        speed = {
            "images_per_second": round((self.nimg - self._logged_nimg) / max(now - self._logged_at, 1e-9), 3),
            "data_wait_seconds": round(wait - self._logged_wait, 4),
            "memory_bytes": _peak_memory(),
        }
        self._logged_at, self._logged_nimg, self._logged_wait = now, self.nimg, wait
        return speed

    def reason_to_stop(self, stop: StopRequest) -> str | None:
        """The signal that came to any of the processes, or the limit of this run."""
        requested = stop.requested
        if ranks.any_of(requested is not None):
            return requested or "a signal to another process"
        limit = self.schedule.images_this_run
        return ENOUGH if limit and self.nimg - self._first >= limit else None

    def save(self) -> None:
        """Write a checkpoint, of finite weights only."""
        self._must_be_finite()
        step = ranks.whole_state(self.step.state_dict())
        if not ranks.is_first():
            return
        state = {
            "step": step,
            "nimg": self.nimg,
            "seconds": self.seconds,
            "flops_per_update": self.flops_per_update,
        }
        path = checkpoint.save(self.folder, self.nimg, state, self.hooks.guard)
        self.journal.write("checkpoint", nimg=self.nimg, file=path.name)

    def _must_be_finite(self) -> None:
        finite = {
            name: torch.stack([ranks.share(p).isfinite().all() for p in net.parameters()]).all()
            for name, net in self.step.networks().items()
        }
        bad = [name for name, value in finite.items() if ranks.any_of(not value)]
        if bad:
            self._give_up(f"weights are not finite: {', '.join(bad)}")

    def snapshot(self) -> None:
        """A picture, and the networks to use, as they are now, if their weights are finite."""
        self._must_be_finite()
        self.hooks.guard()
        folder = f"snapshots/{self.nimg:012d}"
        self.hooks.export(self.step, self.folder / folder)
        self.draw(f"{folder}/picture.png")
        self.journal.write("snapshot", nimg=self.nimg, folder=folder)

    def draw(self, name: str) -> Path | None:
        """The step's picture, if it has one and there is room for it; all processes have to take part."""
        self.hooks.guard()
        try:
            picture = self.step.picture()
            if picture is None or not ranks.is_first():
                return None
            images = to_uint8(picture.images.flatten(0, 1).nan_to_num(-1, 1, -1).cpu()).numpy()
            save_grid(images, self.folder / name, len(picture.titles), picture.titles)
        except (torch.OutOfMemoryError, OSError) as e:
            self._warn(f"{name} was not drawn: {str(e).splitlines()[0]}")
            return None
        return self.folder / name

    def _warn(self, line: str) -> None:
        self.journal.write("warning", nimg=self.nimg, message=line)
        if ranks.is_first():
            print(line, flush=True)

    def _give_up(self, why: str) -> None:
        picture = self.draw("diverged.png")
        self.journal.write("diverged", nimg=self.nimg, why=why, picture=picture and picture.name)
        raise DivergedError(
            "Training diverged.",
            where=f"{self.folder}, after {self.nimg} images",
            why=why,
            todo=f"{f'Look at {picture}. ' if picture else ''}Lower the learning rate; the last checkpoint is kept.",
        )


def _stack(values: list[Tensor]) -> Tensor:
    return torch.stack([v.detach().float().reshape(()) for v in values])


def _peak_memory() -> int:
    """Bytes: of this process's GPU, or of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
