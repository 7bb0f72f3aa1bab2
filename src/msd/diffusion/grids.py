"""Noise grids (arXiv 2206.00364, eq. 5 and table 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

VP_BETA_D, VP_BETA_MIN = 19.9, 0.1


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """``steps`` noise levels from ``sigma_max`` down to ``sigma_min``, evenly spaced in σ^(1/ρ). (steps,) float64."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def vp_sigma(t: float) -> float:
    """Noise level of the variance-preserving SDE at time t in (0, 1]: σ² = exp(β_d t²/2 + β_min t) − 1."""
    return math.sqrt(math.expm1(0.5 * VP_BETA_D * t**2 + VP_BETA_MIN * t))


def vp_time(sigma: Tensor) -> Tensor:
    """The time at which the variance-preserving SDE has noise level σ; inverse of ``vp_sigma``."""
    return ((VP_BETA_MIN**2 + 2 * VP_BETA_D * (1 + sigma.square()).log()).sqrt() - VP_BETA_MIN) / VP_BETA_D


def iddpm_sigmas(steps: int = 1000, offset: float = 0.008, smallest_ratio: float = 0.001) -> Tensor:
    """Improved DDPM's cosine schedule as noise levels, largest first, then 0. (steps + 1,) float32.

    ᾱ_j = sin²(π/2 · j / (steps (1 + offset))); neighbours' ratio ᾱ_{j−1}/ᾱ_j is at least ``smallest_ratio``.
    """
    alpha_bar = torch.sin(0.5 * math.pi * torch.arange(steps + 1, dtype=torch.float64) / steps / (offset + 1)).square()
    sigmas = torch.zeros(steps + 1, dtype=torch.float64)
    for j in range(steps, 0, -1):
        ratio = (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=smallest_ratio)
        sigmas[j - 1] = ((sigmas[j].square() + 1) / ratio - 1).sqrt()
    return sigmas.float()


def scaled_linear_alphas(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """DDPM's ᾱ_t = ∏ (1 − β) with √β evenly spaced, Stable Diffusion's; t = 0 is the cleanest. (steps,) float32."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32).square()
    return (1 - betas).cumprod(0)
