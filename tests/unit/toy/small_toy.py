"""A very small toy: seconds to train, and all its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import ROOT

from msd import config
from msd.config import load
from msd.plan import Plan
from msd.toy.distribution import Mixture
from msd.toy.train import ToyStep, make_pairs, make_start

SMALL = (
    "toy.dm.images=256",
    "toy.dm.batch_size=16",
    "toy.dm.regression={pairs: 64, batch_size: 16, sampler: {num_steps: 8}}",
    "toy.start.images=256",
    "toy.measure={noises: 40, directions: 8, sampler: {num_steps: 8}}",
    "toy.map={widths: [3, 6], images: [256, 512], seeds: [0, 1, 2]}",
    "toy.students=[1, 2]",
)


def quiet(*_: Any) -> None:
    """No progress."""


def plan(folder: Path, *settings: str) -> Plan:
    return Plan(load(ROOT / "params.yaml", (), [*SMALL, *settings]), results=folder)


def step_of(toy: config.Toy, teacher: Mixture, widths: list[int], students: int) -> ToyStep:
    assert toy.dm.regression is not None
    pairs = make_pairs(teacher, toy.dm.regression, toy.seeds)
    return ToyStep(toy, teacher, widths, students, pairs, make_start(toy, widths, pairs))
