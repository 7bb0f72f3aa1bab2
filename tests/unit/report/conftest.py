"""The report that the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from report_fixtures import experiment, make_results

from msd.plan import Plan
from msd.report.build import build_report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with their report, written once."""
    folder = tmp_path_factory.mktemp("results")
    build_report(make_results(folder))
    return folder


@pytest.fixture
def plan(made: Path, tmp_path: Path) -> Plan:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "results")
    return Plan(experiment(), results=tmp_path / "results")


@pytest.fixture
def built(made: Path) -> Plan:
    """The results and the report, to read only."""
    return Plan(experiment(), results=made)
