"""Noise and its levels for training denoisers: log-normal, with an optional share of high levels."""

from __future__ import annotations

import torch
from torch import Tensor

from msd import config
from msd.draws import BatchDraws


def high_levels(settings: config.NoiseDistribution, grid: Tensor) -> Tensor:
    """The levels of a network's noise grid that the share of high levels is drawn from."""
    return grid[grid >= settings.high_sigma_min]


def draw_sigma(settings: config.NoiseDistribution, draws: BatchDraws, high: Tensor) -> Tensor:
    """σ of a batch, (B,) float32.

    ``ln σ ~ N(p_mean, p_std²)``; a share ``high_sigma_share`` is instead uniform over ``high`` (see
    ``high_levels``): a one-step student works at σ_max, where the log-normal hardly goes.
    """
    sigma = (draws.normal("sigma", ()) * settings.p_std + settings.p_mean).exp()
    if settings.high_sigma_share:
        chosen = high[draws.to_device(draws.integers("high-sigma", 0, len(high)))]
        sigma = torch.where(draws.uniform("high-share") < settings.high_sigma_share, chosen, sigma)
    return sigma


def add_noise(x: Tensor, sigma: Tensor, draws: BatchDraws, role: str = "noise") -> Tensor:
    """``x + σ ε`` for images (B, C, H, W) and levels (B,)."""
    return x + sigma.reshape(-1, 1, 1, 1) * draws.normal(role, tuple(x.shape[1:]))
