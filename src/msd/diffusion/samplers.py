"""Teacher sampling: Heun's second-order method (arXiv 2206.00364, algorithms 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from msd.diffusion.grids import karras_sigmas

Denoiser = Callable[[Tensor, Tensor], Tensor]
NoiseSource = Callable[[int, Tensor], Tensor]


def heun(
    denoise: Denoiser,
    latents: Tensor,
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Tensor:
    """Integrate from pure noise to an image; the last step goes to σ = 0. Uses ``2 num_steps − 1`` evaluations.

    Args:
        denoise: (x float32 (B, C, H, W), 0-d σ) → x0.
        latents: (B, C, H, W) unit noise.
        num_steps: grid points.
        s_churn, s_min, s_max, s_noise: stochasticity; 0 is the deterministic sampler.
        noise: (step, like) → unit noise, asked for only where ``s_churn`` adds some.

    Returns:
        (B, C, H, W) float32. The state is float64 inside, as in the paper's code.

    Raises:
        ValueError: stochastic sampling without a source of noise.
    """
    sigmas = torch.cat([karras_sigmas(num_steps, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])
    sigmas = sigmas.to(latents.device)

    def d(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoise(x.float(), sigma.float()).double()) / sigma

    x = latents.double() * sigmas[0]
    levels = sigmas.tolist()
    for i in range(num_steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        if s_churn > 0 and s_min <= levels[i] <= s_max:
            if noise is None:
                raise ValueError("s_churn > 0 needs a source of noise")
            raised = sigma * (1 + min(s_churn / num_steps, math.sqrt(2) - 1))
            x = x + (raised.square() - sigma.square()).sqrt() * s_noise * noise(i, x)
            sigma = raised
        slope = d(x, sigma)
        euler = x + (following - sigma) * slope
        if i < num_steps - 1:
            slope = (slope + d(euler, following)) / 2
            x = x + (following - sigma) * slope
        else:
            x = euler
    return x.float()
