"""Teacher sampling: Heun's second-order method (arXiv 2206.00364, algorithms 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from msd.diffusion.grids import karras_sigmas

Denoiser = Callable[[Tensor, Tensor], Tensor]
NoiseSource = Callable[[int, Tensor], Tensor]


class SampledNetwork(Protocol):
    """What ``heun_sample`` asks of a network; every one in ``msd.networks`` has it."""

    known_sigmas: tuple[float, float]

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor: ...

    def round_sigma(self, sigma: Tensor) -> Tensor: ...


@torch.no_grad()
def heun_sample(
    net: SampledNetwork,
    latents: Tensor,
    class_labels: Tensor | None = None,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    noise: NoiseSource = lambda _, like: torch.randn_like(like),
) -> Tensor:
    """Draw images from a denoising network with EDM's sampler, at noise levels that the network knows.

    Args:
        net: see ``msd.networks.load_network``.
        latents: (B, C, H, W) unit noise.
        class_labels: (B, num_conditions) one-hot or (B,) class ids; None for an unconditional network.
        num_steps, rho: of the grid.
        sigma_min, sigma_max: narrowed to what the network knows (``known_sigmas``: EDM's know every σ).
        S_churn, S_min, S_max, S_noise: stochasticity, under EDM's names; see ``heun``.
        noise: (step, like) → unit noise for it; by default from torch's global stream.

    Returns:
        (B, C, H, W) float32 in units where the data lie in [-1, 1].
    """
    return heun(
        lambda x, sigma: net(x, sigma, class_labels),
        latents,
        num_steps=num_steps,
        sigma_min=max(sigma_min, net.known_sigmas[0]),
        sigma_max=min(sigma_max, net.known_sigmas[1]),
        rho=rho,
        s_churn=S_churn,
        s_min=S_min,
        s_max=S_max,
        s_noise=S_noise,
        noise=noise,
        round_sigma=net.round_sigma,
    )


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
    round_sigma: Callable[[Tensor], Tensor] = lambda sigma: sigma,
) -> Tensor:
    """Integrate from pure noise to an image; the last step goes to σ = 0. Uses ``2 num_steps − 1`` evaluations.

    Args:
        denoise: (x float32 (B, C, H, W), 0-d σ) → x0.
        latents: (B, C, H, W) unit noise.
        num_steps: grid points.
        s_churn, s_min, s_max, s_noise: stochasticity; 0 is the deterministic sampler.
        noise: (step, like) → unit noise, asked for only where ``s_churn`` adds some.
        round_sigma: to levels that the denoiser knows, for one that knows a few only.

    Returns:
        (B, C, H, W) float32. The state is float64 inside, as in the paper's code.

    Raises:
        ValueError: stochastic sampling without a source of noise.
    """
    grid = round_sigma(karras_sigmas(num_steps, sigma_min, sigma_max, rho).to(latents.device))
    sigmas = torch.cat([grid, grid.new_zeros(1)])

    def d(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoise(x.float(), sigma.float()).double()) / sigma

    x = latents.double() * sigmas[0]
    levels = sigmas.tolist()
    for i in range(num_steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        if s_churn > 0 and s_min <= levels[i] <= s_max:
            if noise is None:
                raise ValueError("s_churn > 0 needs a source of noise")
            raised = round_sigma(sigma * (1 + min(s_churn / num_steps, math.sqrt(2) - 1)))
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
