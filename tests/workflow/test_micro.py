"""A whole run in miniature; and what a second run does: nothing, or what a killed one left, or only what changed."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from working_copy import WorkingCopy, stop, trained_between

from msd.store import Manifest

NOTHING = "Nothing to be done"
THREE_PARTS = [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
SWAPPED = [[0, 1, 2, 3], [4, 5, 7], [6, 8, 9]]
TIMEOUT = 120


@pytest.fixture(scope="module")
def whole(copy: WorkingCopy) -> str:
    """The output of a whole run of experiments/micro.yaml."""
    return copy.run("all")


@pytest.fixture(scope="module")
def trained(copy: WorkingCopy) -> dict[str, str]:
    """The students of experiments/micro.yaml; of a whole run where there was one."""
    copy.run("students")
    return copy.students("micro")


@pytest.fixture
def started(copy: WorkingCopy) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to end when the test does."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    stop(processes)


def wait_for(copy: WorkingCopy, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a file of this pattern is there."""
    deadline = time.monotonic() + TIMEOUT
    while not list(copy.folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, pattern
        time.sleep(0.01)


def rows(copy: WorkingCopy, **variants: dict[str, Any]) -> str:
    """An overlay that gives micro other rows of two updates each; data and teacher are there already."""
    recipe = {"dm": {"images": 32, "batch_size": 16, "regression": None}}
    stages = {name: variant | {"stages": ["dm"]} for name, variant in variants.items()}
    return copy.overlay("rows", {"experiment": "micro", "recipe": recipe, "variants": stages})


def explicit(parts: list[list[int]]) -> dict[str, Any]:
    return {"students": len(parts), "partition": {"kind": "explicit", "parts": parts}}


def test_whole_run(copy: WorkingCopy, whole: str) -> None:
    results = copy.results("micro")
    for name in ("report.json", "tracking.json", "report.html", "ablation.csv", "ablation.md", "metrics.json"):
        assert (results / name).stat().st_size > 0, name
    assert copy.parts("micro") == {str([0, 1, 2, 3, 4]), str([5, 6, 7, 8, 9])}
    assert (copy.folder / "mlflow.db").exists()
    for name in ("student-0", "student-1", "bundle"):
        assert (results / "variants" / "pair" / name / "manifest.json").exists()
    assert not list(results.rglob("*.tmp"))


def test_second_run_does_nothing(copy: WorkingCopy, whole: str) -> None:
    before = copy.starts("micro")
    assert NOTHING in copy.run("all")
    assert copy.starts("micro") == before


def test_without_manifests_finished_work_is_adopted(copy: WorkingCopy, whole: str) -> None:
    before, students = copy.starts("micro"), copy.students("micro")
    for manifest in copy.results("micro").glob("train/*/manifest.json"):
        manifest.unlink()
    copy.run("students")
    assert copy.starts("micro") == before
    assert copy.students("micro") == students


def test_killed_run_goes_on_and_ends_with_the_same_bits(
    copy: WorkingCopy, whole: str, started: list[subprocess.Popen[str]]
) -> None:
    """kill -9 of everything in the middle of distillation; then the same command, and no other."""
    overlay = copy.overlay("killed", {})
    first = copy.start("students", configfile=overlay)
    started.append(first)
    wait_for(copy, "results/killed/state/dm-*/checkpoint-*.json", first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not list(copy.results("killed").glob("state/dm-*/finished.json"))
    assert not copy.students("killed")
    copy.run("students", configfile=overlay)
    starts = copy.starts("killed").values()
    assert all(attempts[0] == 0 for attempts in starts)
    assert any(len(attempts) == 2 and attempts[1] > 0 for attempts in starts)
    assert copy.students("killed").items() <= copy.students("micro").items()
    assert len(copy.students("killed")) == 2
    assert NOTHING in copy.run("students", configfile=overlay)


@pytest.mark.slow
def test_jobs_that_outlive_a_killed_snakemake_are_adopted(
    copy: WorkingCopy, trained: dict[str, str], started: list[subprocess.Popen[str]]
) -> None:
    """kill -9 of Snakemake alone: its jobs live on, the same command waits for them and trains nothing twice."""
    overlay = copy.overlay("orphaned", {})
    first = copy.start("students", configfile=overlay)
    started.append(first)
    wait_for(copy, "results/orphaned/state/dm-*/checkpoint-*.json", first)
    first.kill()
    first.wait()
    copy.run("students", configfile=overlay)
    assert all(attempts == [0] for attempts in copy.starts("orphaned").values())
    assert copy.students("orphaned").items() <= trained.items()


def test_second_snakemake_stops_at_the_lock_of_a_living_one(
    copy: WorkingCopy, started: list[subprocess.Popen[str]]
) -> None:
    overlay = copy.overlay("locked", {})
    first = copy.start("students", configfile=overlay)
    started.append(first)
    wait_for(copy, ".snakemake/locks/*.output.lock", first)
    assert "LockException" in copy.run("students", configfile=overlay, fails=True)
    output, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 0, output
    assert NOTHING in copy.run("students", configfile=overlay)


@pytest.mark.slow
def test_interrupted_run_saves_and_goes_on(
    copy: WorkingCopy, trained: dict[str, str], started: list[subprocess.Popen[str]]
) -> None:
    """Ctrl-C: every process of the terminal gets SIGINT; training saves, and the same command goes on."""
    overlay = copy.overlay("interrupted", {"compute": {"log_every_updates": 1, "checkpoint_every_updates": 1000}})
    first = copy.start("students", configfile=overlay)
    started.append(first)
    wait_for(copy, "results/interrupted/state/dm-*/events.jsonl", first)
    os.killpg(first.pid, signal.SIGINT)
    output, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode != 0
    saved = list(copy.results("interrupted").glob("state/dm-*/checkpoint-*.json"))
    assert saved, output
    copy.run("students", configfile=overlay)
    assert any(len(attempts) == 2 and attempts[1] > 0 for attempts in copy.starts("interrupted").values())
    assert copy.students("interrupted").items() <= trained.items()


def test_one_rows_learning_rate_trains_that_rows_students_only(copy: WorkingCopy, whole: str) -> None:
    one, two = {"students": 1}, {"students": 2}
    faster = two | {"recipe": {"dm": {"student": {"learning_rate": 5e-4}}}}
    before = copy.starts("micro")
    overlay = rows(copy, one=one, two=two, again=two)
    copy.run("students", configfile=overlay)
    first = copy.starts("micro")
    assert len(trained_between(before, first)) == 3  # rows that need the same students share them
    rows(copy, one=one, two=faster, again=two)
    copy.run("students", configfile=overlay)
    second = copy.starts("micro")
    assert len(trained_between(first, second)) == 2
    assert all(second[folder] == starts for folder, starts in first.items())
    rows(copy, one=one, two=two, again=two)
    assert NOTHING in copy.run("students", configfile=overlay)
    assert copy.starts("micro") == second


def test_a_changed_part_trains_the_students_concerned_only(copy: WorkingCopy, whole: str) -> None:
    overlay = rows(copy, three=explicit(THREE_PARTS))
    copy.run("students", configfile=overlay)
    first, students, parts = copy.starts("micro"), copy.students("micro"), copy.parts("micro")
    assert {str(part) for part in THREE_PARTS} <= parts
    rows(copy, three=explicit(SWAPPED))
    copy.run("students", configfile=overlay)
    second = copy.starts("micro")
    assert len(trained_between(first, second)) == 2
    assert all(second[folder] == starts for folder, starts in first.items())
    assert copy.parts("micro") - parts == {str([4, 5, 7]), str([6, 8, 9])}
    new = copy.students("micro").items() - students.items()
    assert len(new) == 3  # the whole partition has new paths …
    assert sum(sha256 in students.values() for _, sha256 in new) == 1  # … but the part that stayed is not trained again
    assert students.items() <= copy.students("micro").items()
    rows(copy, three=explicit(THREE_PARTS))
    assert NOTHING in copy.run("students", configfile=overlay)
    assert copy.starts("micro") == second


def test_compute_settings_train_nothing(copy: WorkingCopy, whole: str) -> None:
    before = copy.starts("micro")
    assert NOTHING in copy.run("students", "--config", "compute={device: cpu, checkpoint_every_updates: 1}")
    assert copy.starts("micro") == before


def test_a_student_from_elsewhere_is_a_row_like_the_others(copy: WorkingCopy, whole: str) -> None:
    trained = Manifest.read(copy.results("micro") / "variants" / "pair" / "student-0" / "manifest.json")
    elsewhere = copy.folder / "elsewhere.safetensors"
    shutil.copyfile(trained.file("student"), elsewhere)
    row = {"model": "weights", "path": elsewhere.name, "sha256": trained.sha256("student")}
    overlay = copy.overlay("foreign", {"experiment": "foreign", "variants": {"elsewhere": row}})
    copy.run("all", configfile=overlay)
    (found,) = pd.read_csv(copy.results("foreign") / "ablation.csv").to_dict("records")
    assert found["variant"] == "elsewhere"
    assert (found["students"], found["nfe"]) == (1, 1)
    assert found["parameters_per_student"] == trained.results["parameters"]
    assert math.isnan(found["images_total"])  # nobody told us
    assert found["fd_digits"] > 0
