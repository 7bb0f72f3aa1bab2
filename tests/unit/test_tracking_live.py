"""``msd track`` while training goes on: what runs, stops, fails and dies, and forty students at once."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import DM_IMAGES
from tracked import Training, all_runs, finish, histories, make_client, results, runs_by_name, unfinish

from msd.plan import Plan
from msd.tracking import follow, track
from msd.training import journal

DM, ADM = "single dm student-0", "single adm student-0"
FORTY = 40


@pytest.fixture
def plan(tracking_folder: Path) -> Plan:
    """An experiment of which nothing has begun but what comes before the students."""
    plan = results(variants={"single": {"students": 1}})
    unfinish(plan)
    return plan


@pytest.fixture
def dm(plan: Plan) -> Training:
    return Training(plan.student_node("single", 0, "dm"))


def states() -> dict[str, str]:
    return {name: run.info.status for name, run in runs_by_name(make_client()).items()}


def points(name: str, metric: str = "dm_loss") -> list[tuple[int, float]]:
    return histories(make_client()).get((name, metric), [])


def test_what_has_not_begun_has_no_run(plan: Plan) -> None:
    told: list[str] = []
    assert track(plan, tell=told.append) is None
    assert told == ["0 runs"]
    assert all_runs(make_client()) == []
    assert not plan.tracking.exists()


def test_a_student_that_runs_has_its_curves_so_far(plan: Plan, dm: Training) -> None:
    dm.start(job="17")
    for nimg in (128, 256):
        dm.progress(nimg, dm_loss=1 / nimg)
        assert track(plan) is None
    assert states() == {"single": "RUNNING", DM: "RUNNING"}
    assert points(DM) == [(128, 1 / 128), (256, 1 / 256)]
    assert points(DM, "system/images_per_second") == [(128, 90.5), (256, 90.5)]
    run = runs_by_name(make_client())[DM]
    assert run.data.metrics["nimg"] == 256
    assert run.data.tags["slurm.job_ids"] == "17"
    assert run.data.params["recipe.images"] == str(DM_IMAGES)
    assert run.info.end_time is None


def test_a_student_that_failed_or_was_killed_says_so_until_it_is_started_again(plan: Plan, dm: Training) -> None:
    dm.start()
    dm.progress(128, dm_loss=1.0)
    dm.fail()
    track(plan)
    assert states() == {"single": "FAILED", DM: "FAILED"}
    assert runs_by_name(make_client())[DM].data.tags["msd.error"] == "DivergedError: Training diverged."
    dm.start(nimg=128)
    track(plan)
    assert states() == {"single": "RUNNING", DM: "RUNNING"}
    assert "msd.error" not in runs_by_name(make_client())[DM].data.tags
    dm.die()
    track(plan)
    assert states() == {"single": "KILLED", DM: "KILLED"}
    dm.start(nimg=128)
    dm.stop()
    track(plan)
    assert states() == {"single": "RUNNING", DM: "SCHEDULED"}, "stopped on request: it has not ended"


def test_a_resumed_stage_has_each_step_once_and_lacks_none(plan: Plan, dm: Training) -> None:
    """A second attempt replays what came after the checkpoint, and may measure at other places."""
    dm.start()
    for nimg in (128, 256, 384):
        dm.progress(nimg, dm_loss=1 / nimg)
    dm.die()
    track(plan)
    dm.start(nimg=256)
    for nimg in (320, 384, 512, DM_IMAGES):
        dm.progress(nimg, dm_loss=2 / nimg)
    track(plan)
    assert states()[DM] == "RUNNING"
    assert [nimg for nimg, _ in points(DM)] == [128, 256, 384, 512, DM_IMAGES]
    dm.finish()
    track(plan)
    assert states() == {"single": "RUNNING", DM: "FINISHED"}, "adm is still to come"
    assert [nimg for nimg, _ in points(DM)] == [128, 256, 320, 384, 512, DM_IMAGES]


def test_follow_ends_with_the_report_and_goes_on_in_the_same_runs(plan: Plan, dm: Training) -> None:
    adm = Training(plan.student_node("single", 0, "adm"))
    dm.start()
    dm.progress(DM_IMAGES, dm_loss=1.0)
    track(plan)
    before = {run.info.run_id for run in all_runs(make_client())}

    def end(told: str) -> None:
        """What happens between one look and the next."""
        lines.append(told)
        if len(lines) == 1:
            dm.finish()
            adm.start()
        elif len(lines) == 2:
            adm.finish()
            finish(plan)

    lines: list[str] = []
    manifest = follow(plan, every=0.01, tell=end)
    assert manifest.path == plan.tracking
    assert lines == ["2 runs: 2 running", "3 runs: 1 finished, 2 running", "3 runs: 3 finished"]
    assert states() == {"single": "FINISHED", DM: "FINISHED", ADM: "FINISHED"}
    assert before < {run.info.run_id for run in all_runs(make_client())}


def write_slowly(training: Training, seed: int) -> None:
    """A journal as it grows, one line in ten in two parts."""
    draws = random.Random(seed)
    training.start()
    for nimg in range(320, DM_IMAGES + 1, 320):
        time.sleep(draws.uniform(0, 0.1))
        training.progress(nimg, dm_loss=draws.random(), fake_score_loss=draws.random())
        if draws.random() < 0.1:
            with open(training.journal.path, "a", encoding="utf-8") as f:
                f.write('{"event": "warn')
                f.flush()
                time.sleep(0.05)
                f.write('ing", "time": 0, "nimg": 0, "message": ""}\n')
    training.finish()


def test_forty_students_that_write_at_once_lose_nothing(tracking_folder: Path) -> None:
    plan = results("forty", {"forty": {"students": FORTY, "stages": ["dm"]}}, classes=FORTY)
    unfinish(plan)
    trainings = [Training(plan.student_node("forty", k, "dm")) for k in range(FORTY)]
    writers = [threading.Thread(target=write_slowly, args=(t, k)) for k, t in enumerate(trainings)]

    def report() -> None:
        for writer in writers:
            writer.join()
        finish(plan)

    told: list[str] = []
    for thread in (*writers, last := threading.Thread(target=report)):
        thread.start()
    follow(plan, every=0.1, tell=told.append)
    last.join()
    assert any("running" in line for line in told[:-1]), "it began while they wrote"
    assert told[-1] == f"{FORTY + 1} runs: {FORTY + 1} finished"
    found: dict[tuple[str, str], Any] = histories(make_client(), "forty")
    for k, training in enumerate(trainings):
        for name in ("dm_loss", "fake_score_loss"):
            written = {nimg: m[name] for nimg, m in journal.metrics(training.journal.path).items()}
            assert len(written) == DM_IMAGES // 320
            assert found[f"forty dm student-{k}", name] == list(written.items())
