"""Killed with -9 at twenty moments, a job ends with the bits of one that was left alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from faults import Call, DieSoon, child, ended, hidden, nothing, quick_job, state_of, train_job
from test_engine import events
from test_job import run
from tiny import BATCH

from msd.store import Manifest
from msd.training import journal

UPDATES = 16  # an attempt that is killed at random saves one update at most, the others six in all
RANDOM = 8
IN_A_SAVE = [
    Call(function, name, nth)
    for function in ("fsync", "replace")  # before the file is safe, and between that and its name
    for name, nths in (("*checkpoint-*.pt", (1, 3)), ("*checkpoint-*.json*", (1, 2)))
    for nth in nths
]
AT_THE_END = [Call(f, name) for name in ("*student.safetensors", "*finished.json*") for f in ("fsync", "replace")]


@dataclass(frozen=True)
class Killed:
    """What came out.

    Attributes:
        undisturbed, result: manifests.
        pids: of the killed job's processes, in order; the last one came to the end.
        state: the killed job's folder.
    """

    undisturbed: Manifest
    result: Manifest
    pids: list[int]
    state: Path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("kills")
    undisturbed = run(quick_job(folder / "a", UPDATES))
    rng, span = random.Random(0), 1.5 * undisturbed.results["seconds"] / UPDATES
    kills: list[DieSoon | Call] = [DieSoon(rng.random() * span) for _ in range(RANDOM)]
    kills += IN_A_SAVE
    rng.shuffle(kills)
    kills += AT_THE_END
    assert len(kills) == 20
    pids = []
    for kill in [*kills, None]:
        progress, call = (kill, None) if isinstance(kill, DieSoon) else (nothing, kill)
        process = child(folder / "log", train_job, folder / "b", UPDATES, progress, call)
        assert ended(process) == (-9 if kill else 0), f"{kill}:\n{(folder / 'log').read_text()}"
        assert process.pid
        pids.append(process.pid)
    result = Manifest.read(quick_job(folder / "b", UPDATES).node.manifest)
    return Killed(undisturbed, result, pids, state_of(folder / "b", UPDATES))


def test_twenty_kills_change_no_bit(killed: Killed) -> None:
    assert killed.result.sha256("student") == killed.undisturbed.sha256("student")
    curves = [journal.metrics(manifest.file("journal")) for manifest in (killed.result, killed.undisturbed)]
    assert curves[0] == curves[1]
    assert list(curves[0]) == [BATCH * k for k in range(1, UPDATES + 1)]


def test_every_attempt_is_in_the_journal(killed: Killed) -> None:
    attempts = [event["attempt"].split("-")[1] for event in events(killed.state, "start")]
    assert attempts == [str(pid) for pid in killed.pids]
    assert killed.result.results["attempts"] == len(killed.pids)


def test_a_kill_costs_no_update_that_was_saved(killed: Killed) -> None:
    saved = 0
    for event in journal.read(killed.state / "events.jsonl"):
        if event["event"] == "start":
            assert event["nimg"] in (saved, saved + BATCH)  # saved, and killed before the journal could say so
            saved = event["nimg"]
        elif event["event"] == "checkpoint":
            saved = event["nimg"]
    warnings = [event["message"] for event in events(killed.state, "warning")]
    assert len(warnings) >= sum(".json" in call.name for call in IN_A_SAVE)  # checkpoints without their record
    assert all("skipped the checkpoint" in line for line in warnings)
    assert all(one["nimg"] <= two["nimg"] for one, two in pairwise(events(killed.state, "start")))


def test_nothing_of_the_killed_remains(killed: Killed) -> None:
    assert hidden(killed.state) == []
    assert hidden(killed.result.path.parent) == []
    assert [path.name for path in killed.state.glob("lease-*")] == [f"lease-{len(killed.pids):06d}.json"]
    assert len(list(killed.state.glob("checkpoint-*"))) == 4  # two, each with its record
