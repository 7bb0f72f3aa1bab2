"""The toy's teacher is exact, and what is measured against it is what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ROOT

from msd import config
from msd.config import load
from msd.draws import Draws
from msd.networks.precond import SIGMA_DATA
from msd.toy import measure
from msd.toy.compare import comparison
from msd.toy.distribution import Mixture


def row(students: int, l1: list[float]) -> dict[str, Any]:
    mean = sum(l1) / len(l1)
    return {"students": students, "width": 8, "images_total": 1000, "flops": 7, "l1": l1, "l1_mean": mean}


def test_the_data_have_the_standard_deviation_that_networks_expect(teacher: Mixture) -> None:
    draws = Draws(0)
    mode = draws.integers("mode", 0, 40_000, 0, teacher.means.shape[1])
    cond = torch.arange(40_000) % len(teacher.means)
    x = teacher.means[cond, mode] + teacher.spreads[cond, mode, None] * draws.normal("x", 0, (40_000, 2))
    assert x.std(dim=0).mean() == pytest.approx(SIGMA_DATA, rel=0.01)


def test_neighbouring_conditions_are_alike(teacher: Mixture) -> None:
    apart = (teacher.means[0] - teacher.means).norm(dim=-1).mean(-1)
    assert (apart[1:5].diff() > 0).all()
    assert apart[1] == pytest.approx(float(apart[-1]), rel=1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 20.0])
def test_the_closed_form_is_the_gradient_of_the_log_density(teacher: Mixture, sigma: float) -> None:
    wide = Mixture(teacher.means.double(), teacher.spreads.double())
    cond = torch.arange(64) % 8
    levels = torch.full((64,), sigma, dtype=torch.float64)
    clean = wide.means[cond, torch.arange(64) % 5]
    x = (clean + sigma * Draws(1).normal("x", 0, (64, 2)).double()).requires_grad_()
    (score,) = torch.autograd.grad(wide.log_density(x, levels, cond).sum(), x)
    denoised = wide.denoise(x, levels, cond)
    assert torch.allclose(x + sigma**2 * score, denoised, rtol=1e-7, atol=1e-9)
    single = teacher.denoise(x.float(), levels.float(), cond)
    assert torch.allclose(single.double(), denoised, atol=2e-3)


def test_the_density_integrates_to_one(teacher: Mixture) -> None:
    line = torch.linspace(-3, 3, 400, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    wide = Mixture(teacher.means.double(), teacher.spreads.double())
    sigma = torch.full((len(x),), 0.1, dtype=torch.float64)
    total = wide.log_density(x, sigma, torch.zeros(len(x), dtype=torch.int64)).exp().sum() * (line[1] - line[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_the_target_is_that_of_a_much_finer_grid(teacher: Mixture) -> None:
    shipped = load(ROOT / "params.yaml").toy
    assert shipped is not None
    noise, cond = Draws(2).normal("z", 0, (200, 2)), torch.arange(200) % 8
    steps = shipped.measure.sampler.num_steps
    fine = teacher.sample(noise, cond, config.Sampler(num_steps=4 * steps))
    errors = {
        n: float((teacher.sample(noise, cond, config.Sampler(num_steps=n)) - fine).abs().sum(-1).mean())
        for n in (8, steps)
    }
    assert errors[steps] < 0.002 < errors[8]


def test_distances_are_what_they_say() -> None:
    x = Draws(0).normal("x", 0, (3, 50, 2))
    shift = torch.tensor([0.3, -0.4])
    assert torch.allclose(measure.l1(x + shift, x), torch.full((3,), 0.7))
    # the mean over directions of |shift · direction| is 2/π of its length
    assert torch.allclose(measure.sliced_wasserstein(x + shift, x, 64), torch.full((3,), 0.5 * 2 / torch.pi), rtol=1e-2)
    shuffled = x[:, torch.arange(49, -1, -1)]
    assert torch.allclose(measure.sliced_wasserstein(shuffled, x, 8), torch.zeros(3), atol=1e-6)
    assert (measure.l1(shuffled, x) > 0.5).all()


def test_verdicts() -> None:
    clear = comparison([row(1, [0.2, 0.21, 0.2]), row(2, [0.1, 0.105, 0.1]), row(4, [0.3, 0.3, 0.3])])
    assert (clear["best_students"], clear["best_many"], clear["tie"]) == (2, 2, False)
    assert clear["ratio"] == pytest.approx(0.5, abs=1e-3)
    unclear = comparison([row(1, [0.2, 0.3, 0.1]), row(4, [0.3, 0.1, 0.15])])
    assert unclear["tie"]
    lost = comparison([row(1, [0.1, 0.1, 0.11]), row(4, [0.2, 0.21, 0.2])])
    assert (lost["best_students"], lost["best_many"], lost["tie"]) == (1, 4, False)
