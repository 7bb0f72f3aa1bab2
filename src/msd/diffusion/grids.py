"""Noise grids (arXiv 2206.00364, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """``steps`` noise levels from ``sigma_max`` down to ``sigma_min``, evenly spaced in σ^(1/ρ). (steps,) float64."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho
