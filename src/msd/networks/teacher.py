"""Many-step sampling of a backbone that is a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from msd.diffusion import heun_sample
from msd.networks.backbone import Backbone


def sample_teacher(teacher: Backbone, noise: Tensor, cond: Tensor, sampler: Mapping[str, Any]) -> Tensor:
    """Unit noise (B, C, H, W) under conditions (B,) → images (B, C, H, W) by Heun's deterministic sampler.

    Args:
        sampler: ``num_steps``, ``sigma_min``, ``sigma_max``, ``rho`` (see ``config.Sampler``).
    """
    return heun_sample(teacher, noise, cond if teacher.num_conditions else None, **sampler)
