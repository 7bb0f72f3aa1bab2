"""The toy that the tests of this folder share, its teacher, and what it leaves."""

from __future__ import annotations

import pytest
from small_toy import SMALL, plan, quiet
from tiny import ROOT

from msd import config
from msd.config import load
from msd.plan import Plan
from msd.toy.distribution import Mixture, pinwheel
from msd.toy.run import run_figure, run_map


@pytest.fixture(scope="session")
def toy() -> config.Toy:
    found = load(ROOT / "params.yaml", (), SMALL).toy
    assert found is not None
    return found


@pytest.fixture(scope="session")
def teacher(toy: config.Toy) -> Mixture:
    return pinwheel(toy.distribution)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The figure and the map of a very small toy."""
    found = plan(tmp_path_factory.mktemp("results"))
    assert found.toy is not None
    assert found.toy_map is not None
    run_figure(found.toy, found.toy_cells, quiet)
    run_map(found.toy_map, found.toy_cells, quiet)
    return found
