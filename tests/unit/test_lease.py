"""One writer per folder: who waits, who is out, who takes over, and that the one who was out writes nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from faults import (
    SERVER,
    At,
    Call,
    child,
    die,
    ended,
    go_on,
    hidden,
    hold,
    nothing,
    quick_job,
    state_of,
    stop,
    train_job,
    wait_until,
    wait_until_stopped,
)
from test_job import run

from msd.store import Manifest, sha256_file
from msd.training import lease
from msd.training.lease import Lease

AT_ONCE = 3.0  # seconds; a holder on another machine counts as alive for twenty times that
LOOKS = 2.5 * lease.LOOK_EVERY  # time for two looks of someone who waits
UPDATES = 4


class Holder:
    """A process that waits for a folder, holds it, and gives it back when told to."""

    def __init__(
        self, folder: Path, log: Path, *arguments: Any, act: Callable[..., None] = hold, **environment: str
    ) -> None:
        self.log, self.process = log, child(log, act, folder, *arguments, **environment)

    def says(self, word: str) -> bool:
        return self.log.exists() and word in self.log.read_text().split()

    def must_hold(self, within: float = 60.0) -> None:
        wait_until(lambda: self.says("holds"), within)

    def must_wait(self, seconds: float = LOOKS) -> None:
        wait_until(lambda: self.says("waits") or self.says("holds"))
        time.sleep(seconds)
        assert not self.says("holds")

    def give_back(self) -> int:
        """The exit code."""
        self.process.terminate()
        return ended(self.process)


def leases(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "lease" in path.name)


def write_lease(folder: Path, **changes: Any) -> Path:
    """The lease of a process that lives on another machine."""
    holder = {"machine": ["elsewhere", "boot"], "process": [1, 0.0], "slurm_job": None, "start": [0, 0]}
    path = folder / "lease-000003.json"
    path.write_text(json.dumps(holder | changes))
    return path


def test_second_process_waits_until_the_first_gives_back(tmp_path: Path) -> None:
    one = Holder(tmp_path / "run", tmp_path / "one")
    one.must_hold()
    two = Holder(tmp_path / "run", tmp_path / "two")
    two.must_wait()
    assert one.give_back() == 0
    two.must_hold(AT_ONCE)
    assert two.give_back() == 0
    assert not one.says("waits")
    assert leases(tmp_path / "run") == ["lease-000002.json"]


def test_holder_that_gave_back_and_lives_on_is_out_at_once(tmp_path: Path) -> None:
    with Lease(tmp_path / "run"):
        pass
    other = Holder(tmp_path / "run", tmp_path / "log")
    other.must_hold(AT_ONCE)
    assert not other.says("waits")
    assert other.give_back() == 0


def test_who_was_slow_to_take_a_number_that_is_past_does_not_hold(tmp_path: Path) -> None:
    """Others have held the folder in the meantime and have tidied that number away."""
    for _ in range(3):
        with Lease(tmp_path) as lease_of_another:
            pass
    assert lease_of_another.number == 3
    assert not Lease(tmp_path)._take(2)
    with Lease(tmp_path, lambda: pytest.fail("it is free")) as held:
        assert not Lease(tmp_path)._take(3)
        held.check()
        assert held.number == 4


def test_killed_holder_is_out_at_once(tmp_path: Path) -> None:
    one = Holder(tmp_path / "run", tmp_path / "one")
    one.must_hold()
    two = Holder(tmp_path / "run", tmp_path / "two")
    two.must_wait(0)
    one.process.kill()
    two.must_hold(AT_ONCE)
    two.process.kill()
    ended(two.process)
    began = time.monotonic()
    with Lease(tmp_path / "run", lambda: pytest.fail("nobody is there to wait for")):
        assert time.monotonic() - began < AT_ONCE
        assert leases(tmp_path / "run") == ["lease-000003.json"]


def test_holder_on_another_machine_is_out_when_it_falls_silent(tmp_path: Path) -> None:
    path, silence = write_lease(tmp_path), 1.0
    silent = threading.Event()

    def touch() -> None:
        while not silent.wait(silence / 5):
            os.utime(path)

    toucher = threading.Thread(target=touch)
    toucher.start()
    other = Holder(tmp_path, tmp_path / "log", silence)
    try:
        other.must_wait(2.5 * silence)
    finally:
        silent.set()
        toucher.join()
    last_touch = time.monotonic()
    other.must_hold(silence + AT_ONCE)
    assert time.monotonic() - last_touch > silence / 2
    assert other.give_back() == 0
    assert leases(tmp_path) == ["lease-000004.json"]


def test_holder_gives_signs_of_life_and_notices_that_it_was_taken_for_dead(tmp_path: Path) -> None:
    silence = 1.0
    one = Holder(tmp_path / "run", tmp_path / "one", silence, "machine 1", silence / 10)
    one.must_hold()
    two = Holder(tmp_path / "run", tmp_path / "two", silence, "machine 2")
    two.must_wait(2.5 * silence)
    assert one.process.pid
    os.kill(one.process.pid, signal.SIGSTOP)
    two.must_hold(silence + AT_ONCE)
    go_on(one.process)
    assert one.give_back() == 11
    assert not one.says("held")
    assert "LeaseLostError" in one.log.read_text()
    assert two.give_back() == 0
    assert two.says("held")
    assert leases(tmp_path / "run") == ["lease-000002.json"]


@pytest.mark.parametrize("content", [b"", b'{"machine": ["a', bytes(100), b"\xff"], ids=["", "cut", "zeros", "binary"])
def test_half_written_lease_is_out_after_silence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lease-000003.json").write_bytes(content)
    began, silence, told = time.monotonic(), 0.7, []
    with Lease(tmp_path, lambda: told.append(1), silence):
        assert time.monotonic() - began > silence
        assert leases(tmp_path) == ["lease-000004.json"]
    assert told == [1]


def hold_after_the_clock_was_set(folder: Path) -> None:
    with mock.patch("psutil._pslinux.boot_time", return_value=psutil.boot_time() + 3600):
        hold(folder)


def test_clock_that_is_set_makes_no_holder_dead(tmp_path: Path) -> None:
    one = Holder(tmp_path / "run", tmp_path / "one")
    one.must_hold()
    two = Holder(tmp_path / "run", tmp_path / "two", act=hold_after_the_clock_was_set)
    two.must_wait()
    assert one.give_back() == 0
    two.must_hold(AT_ONCE)
    assert two.give_back() == 0


def test_holder_in_another_container_of_this_machine_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Its number means another process here, or none."""
    contained = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*contained, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a PID namespace")
    code = (
        "import sys; from pathlib import Path; from msd.training.lease import Lease\n"
        "with Lease(Path(sys.argv[1])): print('holds', flush=True); sys.stdin.read()"
    )
    command = [*contained, sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "holds\n"
        two = Holder(tmp_path / "run", tmp_path / "two")
        two.must_wait()
        one.communicate("")
        two.must_hold(AT_ONCE)
        assert two.give_back() == 0


def slurm(job: str, start: int, restarts: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_START_TIME": str(start),
        "SLURM_RESTART_COUNT": str(restarts),
    }


@pytest.mark.parametrize("later", [slurm("7", 200, 0), slurm("7", 200, 1), slurm("7", 100, 1)])
def test_later_start_of_a_slurm_job_supersedes_the_earlier_at_once(later: dict[str, str], tmp_path: Path) -> None:
    one = Holder(tmp_path / "run", tmp_path / "one", **slurm("7", 100, 0))
    one.must_hold()
    two = Holder(tmp_path / "run", tmp_path / "two", **later)
    two.must_hold(AT_ONCE)
    assert not two.says("waits")
    assert one.give_back() == 11
    assert two.give_back() == 0
    assert leases(tmp_path / "run") == ["lease-000002.json"]


@pytest.mark.parametrize(
    "other",
    [slurm("7", 100, 3), slurm("7", 200, 0), slurm("7", 200, 1), slurm("8", 300, 9), {}],
    ids=["earlier", "fewer restarts", "same start", "other job", "no job"],
)
def test_others_do_not_supersede_a_slurm_job(other: dict[str, str], tmp_path: Path) -> None:
    one = Holder(tmp_path / "run", tmp_path / "one", **slurm("7", 200, 1))
    one.must_hold()
    two = Holder(tmp_path / "run", tmp_path / "two", **other)
    two.must_wait()
    assert one.give_back() == 0
    two.must_hold(AT_ONCE)
    assert two.give_back() == 0


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's digest and time."""
    return {p.name: (sha256_file(p), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("progress", "call"),
    [
        (At(3, stop), None),
        (nothing, Call("fsync", "*checkpoint-*.pt", 3, stop)),
        (nothing, Call("replace", "*checkpoint-*.pt", 3, stop, after=True)),
        (nothing, Call("replace", "*checkpoint-*.json*", 3, stop)),
        (nothing, Call("replace", "*checkpoint-*.json*", 3, stop, after=True)),
        (nothing, Call("replace", "*student.safetensors", 1, stop)),
        (nothing, Call("replace", "*finished.json*", 1, stop)),
    ],
    ids=["update", "checkpoint", "checkpoint done", "record", "record done", "export", "finish"],
)
def test_superseded_job_writes_nothing_more(progress: Any, call: Call | None, tmp_path: Path) -> None:
    """Its machine hangs at some moment; the job is started again and comes to its end; then the first goes on."""
    undisturbed = run(quick_job(tmp_path / "undisturbed", UPDATES))
    folder, log = tmp_path / "run", tmp_path / "log"
    old = child(log, train_job, folder, UPDATES, progress, call, **slurm("7", 100, 0))
    wait_until_stopped(old)
    new = child(tmp_path / "new", train_job, folder, UPDATES, **slurm("7", 100, 1))
    assert ended(new) == 0
    before = contents(state_of(folder, UPDATES))
    go_on(old)
    assert ended(old) == 11, log.read_text()
    assert "LeaseLostError: Another process has taken this run over" in log.read_text()
    assert contents(state_of(folder, UPDATES)) == before
    assert hidden(folder) == []
    result = Manifest.read(quick_job(folder, UPDATES).node.manifest)
    assert result.sha256("student") == undisturbed.sha256("student")


def take_turns(folder: Path, diary: Path, together: Any, dies: bool) -> None:
    """Hold the folder three times, and say so; the last time perhaps die in the middle of it."""
    lease.LOOK_EVERY = 0.01
    descriptor = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    together.wait()
    for turn in range(3):
        with Lease(folder):
            os.write(descriptor, f"enter {os.getpid()}\n".encode())
            time.sleep(0.005)
            os.write(descriptor, f"leave {os.getpid()}\n".encode())
            if dies and turn == 2:
                die()


def test_of_ten_processes_one_at_a_time_holds(tmp_path: Path) -> None:
    together, processes = SERVER.Barrier(10), []
    for i in range(10):
        arguments = (tmp_path / "run", tmp_path / "diary", together, i % 3 == 0)
        processes.append(child(tmp_path / "log", take_turns, *arguments))
    codes = [ended(process) for process in processes]
    assert codes == [-9 if i % 3 == 0 else 0 for i in range(10)], (tmp_path / "log").read_text()
    lines = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    assert [word for word, _ in lines] == ["enter", "leave"] * 30
    assert all(one == two for (_, one), (_, two) in zip(lines[::2], lines[1::2], strict=True))
    assert sorted(pid for _, pid in lines) == sorted(str(p.pid) for p in processes for _ in range(6))
    assert len(leases(tmp_path / "run")) == 1
    assert hidden(tmp_path / "run") == []
