"""Many-step sampling of a backbone that is a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from msd.diffusion import heun_sample
from msd.diffusion.samplers import NoiseSource
from msd.networks.backbone import Backbone


def sample_teacher(
    teacher: Backbone, noise: Tensor, cond: Tensor, sampler: Mapping[str, Any], churn: NoiseSource | None = None
) -> Tensor:
    """Unit noise (B, C, H, W) under conditions (B,) → images (B, C, H, W) by Heun's sampler.

    Args:
        sampler: see ``config.TeacherSampler``.
        churn: the noise that a stochastic sampler adds; None: from torch's global stream.
    """
    settings = dict(sampler) | ({} if churn is None else {"noise": churn})
    return heun_sample(teacher, noise, cond if teacher.is_conditional else None, **settings)
