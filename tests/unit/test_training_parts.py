"""What the engine's runs are made of: random draws, weight averages, optimisers, checkpoints, the journal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import network

from msd.config import Optimizer
from msd.draws import Draws, noise_of_images
from msd.training import checkpoint, journal
from msd.training.ema import Ema
from msd.training.step import Updater


def test_line_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    first = journal.Journal(tmp_path)
    first.write("start")
    first.write("progress", nimg=4, metrics={"loss": 1.0})
    with open(first.path, "a") as f:
        f.write('{"event": "progress", "nimg": 8, "met')
    again = journal.Journal(tmp_path)
    again.write("start")
    again.write("progress", nimg=4, metrics={"loss": 2.0})
    assert [e["event"] for e in journal.read(first.path)] == ["start", "progress", "start", "progress"]
    assert journal.metrics(first.path) == {4: {"loss": 2.0}}
    assert len({e["attempt"] for e in journal.read(first.path)}) == 2


def test_half_written_checkpoint_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 8, {"nimg": 8})
    for name in (".4711.checkpoint-000000000012.pt", ".checkpoint-000000000012.json.abc.tmp"):
        (tmp_path / name).write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path) == ({"nimg": 8}, [])
    assert not list(tmp_path.glob(".*"))


def test_draws_are_functions_of_seed_role_and_index() -> None:
    draws = Draws(0)
    one = draws.normal("noise", 64, (8,))
    draws.normal("noise", 0, (100,))  # what was drawn before does not matter
    assert torch.equal(draws.normal("noise", 64, (8,)), one)
    for other in (Draws(1).normal("noise", 64, (8,)), draws.normal("level", 64, (8,)), draws.normal("noise", 65, (8,))):
        assert not torch.equal(other, one)
    levels = draws.integers("level", 0, 10_000, 20, 23)
    assert set(levels.tolist()) == {20, 21, 22}
    assert 0 <= draws.uniform("share", 0, 1000).min() < draws.uniform("share", 0, 1000).max() < 1


def test_noise_of_an_image_does_not_depend_on_the_batch() -> None:
    whole = noise_of_images(3, 0, 6, (1, 2, 2))
    assert torch.equal(whole[4:], noise_of_images(3, 4, 2, (1, 2, 2)))
    assert not torch.equal(whole, noise_of_images(4, 0, 6, (1, 2, 2)))


def shifted(by: float) -> torch.nn.Module:
    net = network()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by)
    return net


@pytest.mark.parametrize(
    ("halflife", "rampup", "nimg", "share_of_new"),
    [
        (100, 0, 1000, 1 - 0.5 ** (4 / 100)),
        (4, 0, 4, 0.5),
        (100, 0.05, 1000, 1 - 0.5 ** (4 / 50)),  # at most 0.05 × 1000
        (100, 0.05, 10_000, 1 - 0.5 ** (4 / 100)),  # the ramp-up is over
        (0, 0.05, 1000, 1.0),  # no average
        (0, 0, 1000, 1.0),
    ],
)
def test_average_follows_its_half_life(halflife: float, rampup: float, nimg: int, share_of_new: float) -> None:
    old, new = network(), shifted(1.0)
    ema = Ema(new, halflife, rampup, start=old)
    ema.update(nimg, 4)
    with ema.applied() as average:
        assert average is new
        for averaged, p in zip(average.parameters(), old.parameters(), strict=True):
            assert torch.allclose(averaged - p, torch.full_like(p, share_of_new), atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(new.parameters(), shifted(1.0).parameters(), strict=True))


def test_optimizer_warms_up_and_clips() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    updater = Updater(net, Optimizer(learning_rate=0.1, warmup_updates=4, weight_decay=0, clip_norm=0.5))
    rates = []
    for _ in range(6):
        net.weight.grad = torch.full_like(net.weight, 30.0)
        updater.apply()
        assert updater.norm == pytest.approx(30.0)  # before clipping
        assert float(net.weight.grad) == pytest.approx(0.5, rel=1e-4)
        rates.append(updater.learning_rate)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
