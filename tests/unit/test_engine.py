"""A run may stop at any moment: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BATCH, adm_step, dm_step, tensors, tsm_step

from msd.errors import DivergedError, InterruptedRun
from msd.training import checkpoint, journal
from msd.training.engine import Hooks, Outcome, Schedule, train
from msd.training.step import Step

UPDATES = 6
SCHEDULE = Schedule(images=UPDATES * BATCH, log_every=1, checkpoint_every=1)


def states(step: Step) -> dict[str, torch.Tensor]:
    return tensors(step.state_dict())


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in journal.read(folder / "events.jsonl") if e["event"] == kind]


def run_to(folder: Path, updates: int, make: Callable[[], Step] = dm_step) -> Outcome:
    return train(make(), folder, Schedule(updates * BATCH, 1, 1))


def equal(one: Step, other: Step) -> bool:
    a, b = states(one), states(other)
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


class Acting:
    """A real step that does something before one of its updates; in all else it is that step."""

    def __init__(self, step: Step, at: int, act: Callable[[], None]) -> None:
        self._step, self._at, self._act = step, at, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, start: int) -> dict[str, torch.Tensor]:
        if start == self._at * self.batch_size:
            self._act()
        return self._step(start)


class Crash(BaseException):
    """Nothing in msd catches this, as nothing catches kill -9."""


@pytest.mark.parametrize("make", [dm_step, adm_step, tsm_step], ids=["dm", "adm", "tsm"])
def test_resumed_run_equals_undisturbed_run_bit_for_bit(make: Callable[[], Step], tmp_path: Path) -> None:
    undisturbed, resumed = make(), make()
    train(undisturbed, tmp_path / "a", SCHEDULE)
    run_to(tmp_path / "b", UPDATES // 2, make)
    outcome = train(resumed, tmp_path / "b", SCHEDULE)
    assert equal(undisturbed, resumed)
    assert outcome.nimg == UPDATES * BATCH
    assert [e["nimg"] for e in events(tmp_path / "b", "start")] == [0, UPDATES // 2 * BATCH]
    assert journal.metrics(tmp_path / "a" / "events.jsonl") == journal.metrics(tmp_path / "b" / "events.jsonl")


def test_crash_between_checkpoints_replays_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    def crash() -> None:
        raise Crash

    schedule = Schedule(UPDATES * BATCH, log_every=1, checkpoint_every=3)
    undisturbed, resumed = dm_step(), dm_step()
    train(undisturbed, tmp_path / "a", schedule)
    with pytest.raises(Crash):
        train(Acting(dm_step(), 5, crash), tmp_path / "b", schedule)
    train(resumed, tmp_path / "b", schedule)
    assert equal(undisturbed, resumed)
    assert [e["nimg"] for e in events(tmp_path / "b", "start")] == [0, 3 * BATCH]
    replayed = [e["nimg"] for e in events(tmp_path / "b", "progress")]
    assert replayed.count(4 * BATCH) == 2
    assert list(journal.metrics(tmp_path / "b" / "events.jsonl")) == [BATCH * k for k in range(1, UPDATES + 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signal_saves_then_stops(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    schedule = Schedule(UPDATES * BATCH, log_every=1, checkpoint_every=100)
    with pytest.raises(InterruptedRun) as stopped:
        train(Acting(dm_step(), 2, lambda: os.kill(os.getpid(), number)), tmp_path, schedule)
    assert stopped.value.exit_code == 75
    assert stopped.value.why == number.name
    assert [e["nimg"] for e in events(tmp_path, "checkpoint")] == [3 * BATCH]  # the update at hand is finished
    assert events(tmp_path, "interrupted")[0]["signal"] == number.name
    assert signal.getsignal(number) == before
    undisturbed, resumed = dm_step(), dm_step()
    train(undisturbed, tmp_path / "undisturbed", schedule)
    train(resumed, tmp_path, schedule)
    assert equal(undisturbed, resumed)


def test_a_run_in_slices_ends_with_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    whole, sliced = dm_step(), dm_step()
    train(whole, tmp_path / "whole", SCHEDULE)
    slices = replace(SCHEDULE, checkpoint_every=100, images_this_run=2 * BATCH)
    for k in range(1, UPDATES // 2):
        with pytest.raises(InterruptedRun, match="limit of this run"):
            train(dm_step(), tmp_path / "sliced", slices)
        assert events(tmp_path / "sliced", "checkpoint")[-1]["nimg"] == 2 * k * BATCH
    assert train(sliced, tmp_path / "sliced", slices).nimg == UPDATES * BATCH  # the last slice is no interruption
    assert equal(whole, sliced)


def test_signal_in_the_last_update_is_too_late(tmp_path: Path) -> None:
    step = Acting(dm_step(), UPDATES - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(step, tmp_path, SCHEDULE).nimg == UPDATES * BATCH
    assert events(tmp_path, "finish")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_the_record(path: Path) -> None:
    path.with_suffix(".json").unlink()


def spoil_the_record(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize("spoil", [truncate, flip_a_byte, lose_the_record, spoil_the_record])
def test_broken_checkpoint_is_skipped_and_said_so(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_to(tmp_path, 3)
    newest = sorted(tmp_path.glob("checkpoint-*.pt"))[-1]
    spoil(newest)
    undisturbed, resumed = dm_step(), dm_step()
    train(undisturbed, tmp_path / "undisturbed", SCHEDULE)
    train(resumed, tmp_path, SCHEDULE)
    assert events(tmp_path, "start")[-1]["nimg"] == 2 * BATCH
    (warning,) = events(tmp_path, "warning")
    assert newest.name in warning["message"]
    assert newest.name in capsys.readouterr().out
    assert equal(undisturbed, resumed)


def test_without_a_valid_checkpoint_it_starts_again(tmp_path: Path) -> None:
    run_to(tmp_path, 2)
    for path in tmp_path.glob("checkpoint-*.pt"):
        truncate(path)
    run_to(tmp_path, 2)
    assert events(tmp_path, "start")[-1]["nimg"] == 0
    assert len(events(tmp_path, "warning")) == 2


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run_to(tmp_path, 5)
    kept = [f"checkpoint-{k * BATCH:012d}" for k in (4, 5)]
    assert sorted(p.stem for p in tmp_path.glob("checkpoint-*.pt")) == kept
    assert sorted(p.stem for p in tmp_path.glob("checkpoint-*.json")) == kept


def test_a_finished_run_does_no_more_updates(tmp_path: Path) -> None:
    run_to(tmp_path, 2)

    def fail() -> None:
        raise AssertionError("an update too many")

    train(Acting(dm_step(), 2, fail), tmp_path, Schedule(2 * BATCH, 1, 1))


def test_divergence_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    step = dm_step()

    def spoil() -> None:
        with torch.no_grad():
            step.student.model.out_conv.bias.fill_(float("nan"))

    with pytest.raises(DivergedError) as diverged:
        train(Acting(step, 3, spoil), tmp_path, SCHEDULE)
    assert "weights are not finite: student" in diverged.value.why
    assert str(tmp_path) in diverged.value.where
    state, skipped = checkpoint.load_newest(tmp_path)
    assert state is not None
    assert (state["nimg"], skipped) == (3 * BATCH, [])
    assert all(torch.isfinite(t).all() for t in tensors(state).values())
    assert events(tmp_path, "progress")[-1]["metrics"]["fake_score_loss"] is None  # NaN is no JSON


def test_seconds_add_up_over_attempts(tmp_path: Path) -> None:
    run_to(tmp_path, 2)
    state, _ = checkpoint.load_newest(tmp_path)
    assert state is not None
    outcome = run_to(tmp_path, 4)
    assert outcome.seconds > state["seconds"] > 0


def test_progress_is_told_at_log_points(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    hooks = Hooks(progress=lambda done, total, metrics: told.append((done, total)))
    train(dm_step(), tmp_path, Schedule(5 * BATCH, 2, 100), hooks)
    assert told == [(2 * BATCH, 5 * BATCH), (4 * BATCH, 5 * BATCH), (5 * BATCH, 5 * BATCH)]
