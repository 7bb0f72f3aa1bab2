"""A mixture of Gaussians for each condition, whose score at every noise level is known in closed form: the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from msd import config
from msd.diffusion.samplers import heun
from msd.networks.precond import SIGMA_DATA


@dataclass(frozen=True)
class Mixture:
    """Equal-weight isotropic Gaussians in the plane.

    Attributes:
        means: (C, M, 2) of each condition's Gaussians.
        spreads: (C, M) their standard deviations.
    """

    means: Tensor
    spreads: Tensor

    def log_density(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """ln p(x; σ | c), up to nothing: x (..., 2), σ and c broadcastable to (...) → (...)."""
        logits, _ = self._components(x, sigma, cond)
        return logits.logsumexp(dim=-1) - math.log(2 * math.pi * self.spreads.shape[1])

    def denoise(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """The exact denoiser E[x0 | x, σ, c]: x (..., 2), σ and c (...) → (..., 2)."""
        logits, variance = self._components(x, sigma, cond)
        share = logits.softmax(dim=-1)
        means, kept = self.means[cond], self.spreads[cond].square() / variance
        return (share * kept).sum(-1, keepdim=True) * x + ((share * (1 - kept)).unsqueeze(-1) * means).sum(-2)

    def sample(self, noise: Tensor, cond: Tensor, sampler: config.Sampler) -> Tensor:
        """The ODE's end for unit noise (B, 2) at σ_max: the target of a one-step student. (B, 2) float32."""
        return heun(
            lambda x, sigma: self.denoise(x, sigma.expand(len(x)), cond),
            noise,
            num_steps=sampler.num_steps,
            sigma_min=sampler.sigma_min,
            sigma_max=sampler.sigma_max,
            rho=sampler.rho,
        )

    def _components(self, x: Tensor, sigma: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """ln N(x; μ, s² + σ²) + ln 2π of each Gaussian, and s² + σ²; both (..., M)."""
        variance = self.spreads[cond].square() + sigma.unsqueeze(-1).square()
        squared = (x.unsqueeze(-2) - self.means[cond]).square().sum(-1)
        return -squared / (2 * variance) - variance.log(), variance


def pinwheel(settings: config.Pinwheel) -> Mixture:
    """Arms around the origin, scaled so that a coordinate of all data has the standard deviation σ_data."""
    arm = torch.linspace(settings.inner_radius, 1, settings.modes, dtype=torch.float64)
    along = torch.linspace(0, 1, settings.modes, dtype=torch.float64)
    turn = torch.arange(settings.conditions, dtype=torch.float64) * (2 * math.pi / settings.conditions)
    angle = turn[:, None] + settings.twist * along
    means = torch.stack([arm * angle.cos(), arm * angle.sin()], dim=-1)
    spreads = (settings.spread * arm).expand(settings.conditions, -1)
    centred = means - means.mean(dim=(0, 1))
    scale = SIGMA_DATA / (centred.square().sum(-1).mean() / 2 + spreads.square().mean()).sqrt()
    return Mixture((scale * means).float(), (scale * spreads).float())
