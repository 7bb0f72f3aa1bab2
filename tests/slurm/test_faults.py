"""What happens on clusters: every student comes back and ends with the bits of an undisturbed run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from cluster_copy import CopyOnCluster

from msd.training import journal, lease

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
UPDATES = 120
BATCH = 16
LONG = {
    "recipe": {"dm": {"images": UPDATES * BATCH, "batch_size": BATCH, "regression": None}},
    "compute": {"log_every_updates": 1, "checkpoint_every_updates": 10},
}
VARIANTS: dict[str, Any] = {
    "pair": {"students": 2, "stages": ["dm"]},
    "single": {"students": 1, "stages": ["dm"]},
}


@pytest.fixture(scope="module")
def undisturbed(copy: CopyOnCluster) -> dict[str, str]:
    """Name of a student's folder → sha256 of its weights."""
    overlay = copy.overlay("undisturbed", {**LONG, "variants": VARIANTS})
    copy.run("students", configfile=overlay, profile="local")
    return copy.students("undisturbed")


class Campaign:
    """Students of one variant on the cluster, in an experiment of their own, begun and to be disturbed."""

    def __init__(self, copy: CopyOnCluster, name: str, variant: str, **changes: Any) -> None:
        self.copy, self.name, self.count = copy, name, VARIANTS[variant]["students"]
        self.overlay = copy.overlay(name, {**LONG, "variants": {variant: VARIANTS[variant]}, **changes})
        self.profile = "slurm"

    def start(self) -> subprocess.Popen[str]:
        self.process = self.copy.start("students", configfile=self.overlay, profile=self.profile)
        return self.process

    def holders(self) -> dict[Path, dict[str, Any]]:
        """State folder → who trains there."""
        folders = self.copy.results(self.name).glob("state/dm-*")
        found = {folder: lease.newest(folder) for folder in folders}
        return {folder: held[0] for folder, held in found.items() if held and not held[0].get("released")}

    def wait_for_progress(self, updates: int = 20) -> dict[Path, dict[str, Any]]:
        """Wait until all students have trained so far; who trains where."""

        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            return len(self.holders()) == self.count and all(done(f) >= updates * BATCH for f in self.holders())

        until(there, lambda: f"{self.copy.cluster('squeue')}\n{self.holders()}")
        return self.holders()

    def finish(self, undisturbed: dict[str, str]) -> dict[Path, list[int]]:
        """Wait for the end, which must be a good one. State folder → the images at which its attempts began."""
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, output
        self.output = output
        students = self.copy.students(self.name)
        assert len(students) == self.count
        assert students.items() <= undisturbed.items()
        starts = self.copy.starts(self.name)
        assert all(attempts[0] == 0 and attempts == sorted(attempts) for attempts in starts.values())
        for folder in starts:
            one_writer(folder)
        self.copy.cluster.wait_for_idle_nodes()
        return starts


def done(folder: Path) -> int:
    """Images that a journal tells of."""
    path = folder / "events.jsonl"
    return max((e["nimg"] for e in journal.read(path)), default=0) if path.exists() else 0


def one_writer(folder: Path) -> None:
    """After an attempt has begun, no earlier one writes."""
    attempts = [event["attempt"] for event in journal.read(folder / "events.jsonl")]
    assert len(set(attempts)) == 1 + sum(a != b for a, b in itertools.pairwise(attempts))


@pytest.fixture
def begin(
    copy: CopyOnCluster, undisturbed: dict[str, str], started: list[subprocess.Popen[str]]
) -> Callable[..., Campaign]:
    def begin(name: str, variant: str = "single", profile: str = "slurm", **changes: Any) -> Campaign:
        campaign = Campaign(copy, name, variant, **changes)
        campaign.profile = profile
        started.append(campaign.start())
        return campaign

    return begin


def test_requeue(begin: Callable[..., Campaign], cluster: Cluster, undisturbed: dict[str, str]) -> None:
    """One of two students; the other is not disturbed. No retry is used."""
    campaign = begin("requeue", "pair")
    holders = campaign.wait_for_progress()
    disturbed = min(holders)
    cluster("scontrol", "requeue", holders[disturbed]["slurm_job"])
    starts = campaign.finish(undisturbed)
    assert {folder: len(attempts) for folder, attempts in starts.items()} == {f: 1 + (f == disturbed) for f in holders}
    assert starts[disturbed][1] > 0
    assert "Error in rule" not in campaign.output


def test_node_down(begin: Callable[..., Campaign], cluster: Cluster, undisturbed: dict[str, str]) -> None:
    campaign = begin("node-down")
    ((folder, holder),) = campaign.wait_for_progress().items()
    node = node_of(cluster, holder["slurm_job"])
    cluster("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        until(lambda: len(campaign.copy.starts("node-down")[folder]) == 2, lambda: cluster("squeue"))
        assert node_of(cluster, holder["slurm_job"]) != node
    finally:
        cluster("scontrol", "update", f"nodename={node}", "state=resume")
    assert campaign.finish(undisturbed)[folder][1] > 0
    assert "Error in rule" not in campaign.output


def test_preemption(begin: Callable[..., Campaign], cluster: Cluster, undisturbed: dict[str, str]) -> None:
    campaign = begin("preemption", "pair")
    holders = campaign.wait_for_progress()
    cluster("sbatch", "-p", "urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    starts = campaign.finish(undisturbed)
    assert [len(starts[folder]) for folder in holders] == [2, 2]
    assert all(starts[folder][1] > 0 for folder in holders)
    assert "Error in rule" not in campaign.output


def test_killed_job_is_submitted_again(
    begin: Callable[..., Campaign], cluster: Cluster, undisturbed: dict[str, str]
) -> None:
    campaign = begin("killed")
    ((folder, holder),) = campaign.wait_for_progress().items()
    os.kill(holder["process"][0], signal.SIGKILL)
    starts = campaign.finish(undisturbed)
    assert len(starts[folder]) == 2
    assert starts[folder][1] > 0


def test_split_brain(begin: Callable[..., Campaign], cluster: Cluster, undisturbed: dict[str, str]) -> None:
    """A node's daemon dies and its job does not: SLURM starts the job again elsewhere, and one of the two ends."""
    campaign = begin("split-brain")
    ((folder, holder),) = campaign.wait_for_progress().items()
    node = node_of(cluster, holder["slurm_job"])
    cluster.kill(node)
    cluster("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # as it will see by itself soon
    try:
        until(lambda: lease.newest(folder)[0]["process"] != holder["process"], lambda: cluster("squeue"))  # type: ignore[index]
        until(lambda: not Path(f"/proc/{holder['process'][0]}").exists(), lambda: "the first process lives on")
    finally:
        cluster.start(node)
        cluster("scontrol", "update", f"nodename={node}", "state=resume")
    campaign.finish(undisturbed)


def test_controller_is_killed(begin: Callable[..., Campaign], cluster: Cluster, undisturbed: dict[str, str]) -> None:
    campaign = begin("controller")
    campaign.wait_for_progress()
    cluster.kill("controller")
    time.sleep(3)
    cluster.start("controller")
    campaign.finish(undisturbed)


def test_snakemake_is_killed(begin: Callable[..., Campaign], undisturbed: dict[str, str]) -> None:
    """Its jobs live on; the same command trains nothing twice."""
    first = begin("snakemake")
    first.wait_for_progress()
    first.process.kill()
    first.process.wait()
    starts = begin("snakemake").finish(undisturbed)
    assert list(starts.values()) == [[0]]


def test_walltime_in_slices(begin: Callable[..., Campaign], copy: CopyOnCluster, undisturbed: dict[str, str]) -> None:
    """Each job has a minute, of which some seconds are used; nobody does anything, and no retry is there."""
    profile = copy.with_profile(dm={"runtime": 1}, retries=0)
    campaign = begin("walltime", profile=profile, compute={**LONG["compute"], "spare_seconds": 42})
    (attempts,) = campaign.finish(undisturbed).values()
    assert len(attempts) >= 2, attempts


def test_two_who_want_the_same_student_train_it_once(
    copy: CopyOnCluster, cluster: Cluster, undisturbed: dict[str, str]
) -> None:
    overlay = copy.overlay("twins", {**LONG, "variants": {"single": VARIANTS["single"]}})
    copy.run("data_ready", "networks_ready", configfile=overlay, profile="local")
    msd = f"msd partition --variant single --configfile {overlay}; msd dm --variant single --configfile {overlay}"
    for node in ("n1", "n2"):
        command = ["sbatch", f"--nodelist={node}", f"--output={copy.folder}/twin-{node}.log", f"--wrap={msd}"]
        subprocess.run(command, cwd=copy.folder, env=copy.environment(), check=True, capture_output=True)
    until(lambda: not cluster.jobs(), lambda: cluster("squeue"))
    assert list(copy.starts("twins").values()) == [[0]]
    assert copy.students("twins").items() <= undisturbed.items()
    logs = [(copy.folder / f"twin-{node}.log").read_text() for node in ("n1", "n2")]
    assert all("train/dm-" in log for log in logs), logs
    assert sum("another job trains it; waiting" in log for log in logs) == 1, logs


def test_student_on_two_gpus(begin: Callable[..., Campaign], copy: CopyOnCluster) -> None:
    """One job, one torchrun, two processes; the weights agree in the limits of float32, so another test compares."""
    campaign = begin("two-gpus", profile=copy.with_profile(dm={"gpu": 2}), recipe=SHORT)
    output, _ = campaign.process.communicate(timeout=300)
    assert campaign.process.returncode == 0, output
    (folder,) = copy.results("two-gpus").glob("state/dm-*")
    assert [e["processes"] for e in journal.read(folder / "events.jsonl") if e["event"] == "start"] == [2]


SHORT = {"dm": {"images": 4 * BATCH, "batch_size": BATCH, "regression": None}}
DIVERGES = {
    "dm": {
        "images": UPDATES * BATCH,
        "batch_size": BATCH,
        "regression": None,
        "student": {"learning_rate": 1e30, "betas": [0.0, 0.999]},
    }
}


def test_hopeless_error_is_not_tried_again(begin: Callable[..., Campaign], copy: CopyOnCluster) -> None:
    """Retries repeat the message at once; another call of Snakemake tries again."""
    campaign = begin("hopeless", profile=copy.with_profile(retries=1), recipe=DIVERGES)
    output, _ = campaign.process.communicate(timeout=300)
    assert campaign.process.returncode != 0
    (attempts,) = copy.starts("hopeless").values()
    assert attempts == [0], output
    (failure,) = copy.results("hopeless").glob("state/failures/dm-*.json")
    assert json.loads(failure.read_text())["error"] == "DivergedError"
    status = subprocess.run(
        ["msd", "status", "--configfile", campaign.overlay],
        cwd=copy.folder,
        env=copy.environment(),
        capture_output=True,
        text=True,
    )
    assert "DivergedError: Training diverged." in status.stdout
    assert "1 failed" in status.stdout


def node_of(cluster: Cluster, job: str) -> str:
    """Where a job runs."""
    return next((node for number, _, node in cluster.jobs() if number == job), "")
