"""Noise grids, noise levels for training, and Heun's sampler where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from msd.config import NoiseDistribution
from msd.diffusion import heun, karras_sigmas
from msd.diffusion.noise import draw_sigma, high_levels
from msd.draws import Draws

MEAN, STD = 0.3, 0.5


class Gaussian:
    """The exact denoiser of data N(MEAN, STD²), counting its calls."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.levels.append(float(sigma))
        return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)

    @staticmethod
    def solution(x: Tensor, sigma: float) -> Tensor:
        """Where the probability-flow ODE takes x from ``sigma`` to 0: distances to the mean shrink with the std."""
        return MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + sigma**2)


def latents(count: int = 64) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def error(num_steps: int) -> float:
    z = latents()
    return float((heun(Gaussian(), z, num_steps=num_steps) - Gaussian.solution(80.0 * z, 80.0)).abs().max())


def test_grid_runs_from_end_to_end() -> None:
    grid = karras_sigmas(18, 0.01, 50.0, 7.0)
    assert len(grid) == 18
    assert grid[0] == pytest.approx(50.0, rel=1e-12)
    assert grid[-1] == pytest.approx(0.01, rel=1e-9)
    assert (grid.diff() < 0).all()
    roots = grid ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(17))


def test_heun_solves_the_ode_to_second_order() -> None:
    assert error(128) < 2e-3
    assert error(32) / error(128) > 12  # second order: a quarter of the step, a sixteenth of the error


@pytest.mark.parametrize("num_steps", [1, 2, 18])
def test_number_of_evaluations(num_steps: int) -> None:
    denoise = Gaussian()
    heun(denoise, latents(1), num_steps=num_steps)
    assert len(denoise.levels) == 2 * num_steps - 1
    assert denoise.levels[0] == pytest.approx(80.0)
    assert min(denoise.levels) > 0


def test_stochastic_sampler_needs_noise() -> None:
    with pytest.raises(ValueError, match="source of noise"):
        heun(Gaussian(), latents(1), s_churn=40.0)


def test_stochastic_sampler_keeps_the_distribution() -> None:
    draws, asked = Draws(0), []

    def noise(step: int, like: Tensor) -> Tensor:
        asked.append(step)
        return draws.normal("churn", step, tuple(like.shape)).to(like.dtype)

    images = heun(Gaussian(), latents(4000), num_steps=64, s_churn=40.0, s_min=0.05, s_max=50.0, noise=noise)
    levels = karras_sigmas(64)
    assert asked == [i for i in range(64) if 0.05 <= levels[i] <= 50.0]
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(images.std()) == pytest.approx(STD, abs=0.02)


def test_training_levels_are_log_normal() -> None:
    sigma = draw_sigma(NoiseDistribution(p_mean=-1.0, p_std=0.5), Draws(0).batches(0, 20_000)[0], torch.empty(0))
    assert float(sigma.log().mean()) == pytest.approx(-1.0, abs=0.02)
    assert float(sigma.log().std()) == pytest.approx(0.5, abs=0.02)


def test_a_share_of_training_levels_is_high() -> None:
    settings = NoiseDistribution(p_mean=-5.0, p_std=0.1, high_sigma_share=0.25, high_sigma_min=10.0)
    grid = karras_sigmas(1000).float().flip(0)
    sigma = draw_sigma(settings, Draws(0).batches(0, 20_000)[0], high_levels(settings, grid))
    high = sigma[sigma > 1]
    assert len(high) / len(sigma) == pytest.approx(0.25, abs=0.02)
    assert torch.isin(high, grid).all()
    assert high.min() >= 10
    assert len(high.unique()) == (grid >= 10).sum()
