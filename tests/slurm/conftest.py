"""One cluster and one working copy for the tests of this folder; each uses an experiment of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from cluster_copy import CopyOnCluster
from working_copy import stop


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    lacking = missing()
    if lacking:
        pytest.skip(f"needs Debian's slurm-wlm and munge: {', '.join(lacking)} not found")
    folder = Path(tempfile.mkdtemp(prefix="msd-slurm-"))
    cluster = Cluster(folder)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def copy(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> CopyOnCluster:
    return CopyOnCluster(tmp_path_factory.mktemp("slurm") / "copy", cluster)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to end when the test does."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    stop(processes)
