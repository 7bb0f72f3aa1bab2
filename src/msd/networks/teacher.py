"""Many-step sampling of a backbone that is a teacher, with classifier-free guidance if it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from msd.diffusion import heun_sample
from msd.diffusion.samplers import NoiseSource
from msd.errors import ConfigError
from msd.networks.backbone import Backbone


def sample_teacher(
    teacher: Backbone, noise: Tensor, cond: Tensor, sampler: Mapping[str, Any], churn: NoiseSource | None = None
) -> Tensor:
    """Unit noise (B, C, H, W) under conditions (B,) → images (B, C, H, W) by Heun's sampler.

    Args:
        sampler: see ``config.TeacherSampler``.
        churn: the noise that a stochastic sampler adds; None: from torch's global stream.

    Raises:
        ConfigError: guidance of a teacher that cannot do without a condition.
    """
    settings = dict(sampler) | ({} if churn is None else {"noise": churn})
    scale = settings.pop("guidance", 1.0)
    if scale != 1 and not teacher.has_unconditional:
        raise ConfigError(
            "This teacher cannot be sampled with guidance.",
            where="evaluation.protocol.sampler.guidance",
            why="it has not learnt to denoise without a class: no labels were dropped in its training",
            todo="Leave guidance at 1.",
        )
    return heun_sample(_Guided(teacher, scale), noise, cond if teacher.is_conditional else None, **settings)


class _Guided:
    """A teacher whose every prediction is guided; for a scale of 1 the teacher itself."""

    def __init__(self, teacher: Backbone, scale: float) -> None:
        self.teacher, self.scale, self.known_sigmas = teacher, scale, teacher.known_sigmas

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.teacher.guided(self.teacher(x, sigma, class_labels), x, sigma, self.scale)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.teacher.round_sigma(sigma)
