"""Many-step sampling of a backbone that is a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from msd.diffusion import heun
from msd.networks.backbone import Backbone


@torch.no_grad()
def sample_teacher(teacher: Backbone, noise: Tensor, cond: Tensor, sampler: Mapping[str, Any]) -> Tensor:
    """Unit noise (B, C, H, W) under conditions (B,) → images (B, C, H, W) by Heun's deterministic sampler.

    Args:
        sampler: ``num_steps``, ``sigma_min``, ``sigma_max``, ``rho`` (see ``config.Sampler``).
    """
    return heun(lambda x, sigma: teacher.denoise(x, sigma, cond), noise, **sampler)
