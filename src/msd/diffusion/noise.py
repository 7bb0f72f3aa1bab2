"""Noise levels for training denoisers: log-normal, with an optional share of high levels."""

from __future__ import annotations

import torch
from torch import Tensor

from msd import config
from msd.draws import Draws


def draw_sigma(settings: config.NoiseDistribution, draws: Draws, start: int, count: int, grid: Tensor) -> Tensor:
    """σ of a batch, (count,) float32.

    ``ln σ ~ N(p_mean, p_std²)``; a share ``high_sigma_share`` is instead uniform over the levels of the network's
    noise ``grid`` above ``high_sigma_min``: a one-step student works at σ_max, where the log-normal hardly goes.
    """
    sigma = (draws.normal("sigma", start, (count,)) * settings.p_std + settings.p_mean).exp()
    if settings.high_sigma_share:
        high = grid[grid >= settings.high_sigma_min]
        chosen = high[draws.integers("high-sigma", start, count, 0, len(high)).to(high.device)]
        sigma = torch.where(draws.uniform("high-share", start, count) < settings.high_sigma_share, chosen, sigma)
    return sigma
