"""The whole miniature experiment through `snakemake --profile slurm`, and what is wrong before anything runs."""

from __future__ import annotations

import threading

import pytest
from cluster import NODES, Cluster
from cluster_copy import CopyOnCluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def local(copy: CopyOnCluster) -> dict[str, str]:
    """The students that come out without a cluster."""
    overlay = copy.overlay("local", {})
    copy.run("students", configfile=overlay, profile="local")
    return copy.students("local")


def test_whole_experiment(copy: CopyOnCluster, cluster: Cluster, local: dict[str, str]) -> None:
    """Students run at the same time on different nodes; light rules need no job; the weights are the same."""
    seen: list[list[tuple[str, str, str]]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.3):
            seen.append(cluster.jobs())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output = copy.run("all")
    finally:
        done.set()
        watcher.join()
    assert copy.students("micro") == local
    for name in ("report.html", "tracking.json", "ablation.csv"):
        assert (copy.results("micro") / name).exists()
    together = [{node for _, state, node in jobs if state == "RUNNING"} for jobs in seen]
    assert set(NODES) in together
    submitted = {job for jobs in seen for job, _, _ in jobs}
    assert len(submitted) == 6, output  # two students, an evaluation, the breakdown, the floor, the latency
    assert "Nothing to be done" in copy.run("all")


def test_wrong_partition_is_one_clear_error(copy: CopyOnCluster, cluster: Cluster) -> None:
    overlay = copy.overlay("wrong-partition", {})
    profile = copy.with_profile(dm={"slurm_partition": "nowhere"})
    output = copy.run("students", configfile=overlay, profile=profile, fails=True)
    assert "ConfigError: The cluster has no partition nowhere." in output
    assert "Choose from cpu, gpu, urgent." in output
    assert "Traceback" not in output
    assert cluster.jobs() == []
