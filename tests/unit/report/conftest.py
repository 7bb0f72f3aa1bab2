"""The report that the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from report_fixtures import VARIANTS, experiment, make_results

from msd.plan import Plan
from msd.report.build import build_report

FEW = experiment({name: VARIANTS[name] for name in ("teacher", "single", "msd4")})


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


@pytest.fixture(scope="session")
def few_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three variants with their report, written once."""
    folder = tmp_path_factory.mktemp("few")
    build_report(make_results(folder, FEW))
    return folder


@pytest.fixture
def few(few_made: Path, tmp_path: Path) -> Plan:
    """A copy with three variants, which is quick to build again."""
    shutil.copytree(few_made, tmp_path / "few")
    return Plan(FEW, results=tmp_path / "few")


@pytest.fixture
def built(made: Path) -> Plan:
    """The results and the report, to read only."""
    return Plan(experiment(), results=made)
