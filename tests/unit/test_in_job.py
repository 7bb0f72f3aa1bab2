"""What a stage does in a SLURM job: it stops in time, repeats no hopeless try, and `msd status` tells of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import MSD
from tiny import BATCH, ROOT, dm_step

from msd import failures
from msd.cli.in_job import run_stage
from msd.config import load
from msd.errors import ConfigError, DivergedError, InterruptedRun, MsdError, StorageError
from msd.plan import Node, Plan
from msd.store import Manifest
from msd.training import checkpoint
from msd.training.engine import Schedule, train
from msd.training.signals import STOP_AT, TIME_IS_UP, StopRequest

NODE = Node("dm", "train", "dm", {"recipe": {"images": 64}}, {}, Path("results/tiny"), "tiny dm student 1/1")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME", "SLURM_STEP_NUM_TASKS", STOP_AT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets this process believe that it runs in a job with so many seconds left."""

    def job(seconds: float) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + seconds)))
        monkeypatch.setenv(STOP_AT, "")  # so that it is as before afterwards
        monkeypatch.delenv(STOP_AT)

    return job


def fails(error: MsdError) -> Callable[[], Manifest]:
    def stage() -> Manifest:
        raise error

    return stage


def unexpected() -> Manifest:
    raise AssertionError("the stage was run")


def test_time_limit_stops_as_a_signal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AT, str(time.time() + 0.3))
    with StopRequest() as stop:
        assert stop.requested is None
        time.sleep(0.4)
        assert stop.requested == TIME_IS_UP
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_time_limit_after_a_single_update_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the job would be started again and again for one update each."""
    monkeypatch.setenv(STOP_AT, str(time.time() - 1))
    with pytest.raises(ConfigError, match="room for a single update"):
        train(dm_step(), tmp_path, Schedule(4 * BATCH, 1, 10))
    state, _ = checkpoint.load_newest(tmp_path)
    assert state is not None
    assert state["nimg"] == BATCH
    monkeypatch.setenv(STOP_AT, str(time.time() + 1))
    with pytest.raises(InterruptedRun) as stopped:
        train(dm_step(), tmp_path, Schedule(4000 * BATCH, 1, 10))
    assert stopped.value.why == TIME_IS_UP


def test_job_stops_before_its_walltime(job: Callable[[float], None]) -> None:
    job(1000)
    asked: list[float] = []

    def stage() -> Manifest:
        asked.append(float(os.environ[STOP_AT]) - time.time())
        return Manifest(Path("x"), {})

    run_stage(NODE, 180, stage)
    assert asked[0] == pytest.approx(820, abs=2)


def test_job_that_is_too_short_is_refused(job: Callable[[float], None]) -> None:
    job(100)
    with pytest.raises(ConfigError, match="The walltime is too short"):
        run_stage(NODE, 180, unexpected)


def test_job_that_was_started_several_times_is_refused(
    job: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job(1000)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ConfigError, match="started this job 4 times at once"):
        run_stage(NODE, 180, unexpected)


def test_hopeless_error_is_repeated_in_jobs_only(job: Callable[[float], None]) -> None:
    error = DivergedError("Training diverged.", where="here", why="so", todo="that")
    with pytest.raises(DivergedError):
        run_stage(NODE, 180, fails(error))  # by hand
    done = Manifest(Path("x"), {})
    assert run_stage(NODE, 180, lambda: done) is done
    assert failures.read(NODE) is None
    job(1000)
    with pytest.raises(DivergedError):
        run_stage(NODE, 180, fails(error))
    with pytest.raises(DivergedError) as repeated:
        run_stage(NODE, 180, unexpected)
    assert str(repeated.value) == str(error)
    failures.forget_all(NODE.root)
    assert run_stage(NODE, 180, lambda: done) is done


def test_error_that_may_pass_is_tried_again(job: Callable[[float], None]) -> None:
    job(1000)
    with pytest.raises(StorageError):
        run_stage(NODE, 180, fails(StorageError("A checkpoint could not be saved.")))
    assert isinstance(failures.read(NODE), StorageError)
    done = Manifest(Path("x"), {})
    assert run_stage(NODE, 180, lambda: done) is done
    assert failures.read(NODE) is None


def test_interruption_is_no_failure() -> None:
    with pytest.raises(InterruptedRun):
        run_stage(NODE, 180, fails(InterruptedRun("Stopped and saved.", why="SIGTERM")))
    assert failures.read(NODE) is None


def test_broken_record_of_a_failure_is_none() -> None:
    failures.record(NODE, ConfigError("No."))
    failures.path_of(NODE).write_text("{")
    assert failures.read(NODE) is None


def test_status_without_torch() -> None:
    for name in ("params.yaml", "protocols", "experiments", "resources"):
        Path(name).symlink_to(ROOT / name)
    plan = Plan(load(Path("params.yaml")))
    node = plan.student_node("single", 0, "dm")
    failures.record(node, DivergedError("Training diverged."))
    done = subprocess.run([MSD, "status"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (failed,) = [line for line in lines if "DivergedError: Training diverged." in line]
    assert failed.startswith("single dm student 1/1")
    assert "0 of 4,096" in failed
    assert lines[-1].endswith(" waiting, 1 failed") or lines[-1].startswith("1 failed, ")
    code = "import sys; from msd.cli.main import main; main(['status']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_other_number_of_processes_than_asked_for_is_refused() -> None:
    for name in ("params.yaml", "protocols", "experiments", "resources"):
        Path(name).symlink_to(ROOT / name)
    command = [MSD, "dm", "--variant", "single", "--processes", "2"]
    done = subprocess.run(
        command, env={**os.environ, "WORLD_SIZE": "3", "RANK": "0"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "2 processes were asked for, and 3 run together." in done.stderr
