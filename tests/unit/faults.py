"""Faults on demand: processes of their own that are killed or stopped at a chosen moment, or find no room on the disk.

The processes are forked from a server that has imported PyTorch and computed nothing, so each starts in no time.
"""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import torch
from test_job import COMPUTE, job
from tiny import BATCH, STAGE, network

from msd import config
from msd.cli import main as command
from msd.distill.dm import DmStep
from msd.draws import Draws
from msd.training import lease
from msd.training.engine import Progress
from msd.training.job import Job, run_job, state_folder

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "torch._dynamo", "msd.cli.main", "msd.distill.adm", "msd.distill.tsm"])
PATIENCE = 60.0  # seconds, of a test that fails


def child(log: Path, act: Callable[..., Any], *arguments: Any, **environment: str) -> BaseProcess:
    """Start ``act(*arguments)`` in a process that ends as the ``msd`` command does; ``log`` gets what it says."""
    process = SERVER.Process(target=_as_command, args=(log, environment, act, arguments), daemon=True)
    process.start()
    # of a test that fails: it may stand still, or wait for ever
    atexit.register(lambda: process.is_alive() and process.kill())
    return process


def _as_command(log: Path, environment: dict[str, str], act: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(log, "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    parser = SimpleNamespace(parse_args=lambda argv: SimpleNamespace(run=lambda _: act(*arguments)))
    with mock.patch.object(command, "build_parser", return_value=parser):
        sys.exit(command.main([]))


def ended(process: BaseProcess) -> int:
    """The exit code; of a process that a signal ended, minus its number."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


def wait_until(happened: Callable[[], bool], within: float = PATIENCE) -> None:
    deadline = time.monotonic() + within
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def wait_until_stopped(process: BaseProcess) -> None:
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def go_on(process: BaseProcess) -> None:
    assert process.pid
    os.kill(process.pid, signal.SIGCONT)


def nothing(*_: object) -> None:
    pass


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stand still until someone says to go on, as a process does whose machine hangs."""
    os.kill(os.getpid(), signal.SIGSTOP)


def limit_files(size: int) -> None:
    """From now on no file of this process may grow beyond so many bytes; it fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def find_no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Call:
    """Something to do at the ``nth`` call of ``os.fsync`` or ``os.replace`` on a file whose name matches a pattern.

    Temporary files carry the name of what they will become.
    """

    function: str
    name: str
    nth: int = 1
    act: Callable[[], None] = die
    after: bool = False

    def arm(self) -> None:
        real, seen = getattr(os, self.function), 0

        def wrapped(what: Any, *to: Any) -> None:
            nonlocal seen
            path = to[0] if to else os.readlink(f"/proc/self/fd/{what}")
            matches = fnmatch(os.path.basename(path), self.name)
            seen += matches
            due = matches and seen == self.nth
            if due and not self.after:
                self.act()
            real(what, *to)
            if due and self.after:
                self.act()

        setattr(os, self.function, wrapped)


@dataclass(frozen=True)
class At:
    """Something to do after an update, before it is saved; told of progress."""

    update: int
    act: Callable[[], None]

    def __call__(self, done: int, *_: object) -> None:
        if done == self.update * BATCH:
            self.act()


@dataclass
class DieSoon:
    """Die so many seconds after the attempt's first update, wherever that is; wait for it before a second is saved."""

    seconds: float
    first: int = 0
    killer: threading.Thread | None = field(default=None, repr=False)

    def __call__(self, done: int, *_: object) -> None:
        if self.killer is None:
            self.first, self.killer = done, threading.Timer(self.seconds, die)
            self.killer.start()
        if done > self.first:
            signal.pause()


def quick_step(micro_batch: int | None = None) -> DmStep:
    """A DM step of the smallest networks."""
    small: dict[str, Any] = {"model_channels": 4, "channel_mult": [1]}
    nets = [network(seed, **small) for seed in (2, 1, 3)]
    settings = config.Dm.model_validate(STAGE | {"two_time_scale_ratio": 1})
    return DmStep(*nets, torch.tensor([1, 2]), settings, Draws(0, micro_batch=micro_batch))


def quick_job(folder: Path, updates: int, make: Callable[[int | None], Any] = quick_step) -> Job:
    """The real job of that step, a checkpoint at each update."""
    return replace(job(folder, images=updates * BATCH), make_step=make)


def state_of(folder: Path, updates: int) -> Path:
    """Where that job keeps its state."""
    whole = quick_job(folder, updates)
    return state_folder(whole.node, whole.identity)[1]


def train_job(folder: Path, updates: int, progress: Progress = nothing, call: Call | None = None) -> None:
    """What the processes of most tests do."""
    if call is not None:
        call.arm()
    run_job(quick_job(folder, updates), COMPUTE, progress)


def hold(folder: Path, silence: float = lease.SILENCE, machine: str = "", beat: float = lease.HEARTBEAT) -> None:
    """Hold a folder until SIGTERM comes, then look whether it is still held.

    Args:
        machine: name of another machine to be on; empty: this one.
    """
    lease.HEARTBEAT = beat
    if machine:
        lease._boot = lambda: machine
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with lease.Lease(folder, partial(say, "waits"), silence) as held:
        say("holds")
        signal.sigwait({signal.SIGTERM})
        held.check()
        say("held")


def say(word: str) -> None:
    print(word, flush=True)


def hidden(folder: Path) -> list[str]:
    """Names of temporary files."""
    return sorted(path.name for path in folder.rglob(".*"))
