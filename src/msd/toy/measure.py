"""Two distances between a student's points and the teacher's ODE's for the same noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msd import config
from msd.draws import Draws
from msd.toy.distribution import Mixture

EVALUATION_SEED = 2**31  # no training seed's stream


def evaluation_noise(settings: config.ToyMeasure, conditions: int) -> Tensor:
    """(C, E, 2), the same for all students."""
    return Draws(EVALUATION_SEED).normal("toy/evaluation", 0, (conditions, settings.noises, 2))


def targets(teacher: Mixture, noise: Tensor, settings: config.ToyMeasure) -> Tensor:
    """The teacher's ODE's points for noise (C, E, 2), same shape."""
    cond = torch.arange(len(noise)).repeat_interleave(noise.shape[1])
    return teacher.sample(noise.reshape(-1, 2), cond, settings.sampler).reshape(noise.shape)


def l1(points: Tensor, target: Tensor) -> Tensor:
    """Mean over noises of |Δx| + |Δy|: (..., C, E, 2) → (..., C)."""
    return (points - target).abs().sum(-1).mean(-1)


def sliced_wasserstein(points: Tensor, target: Tensor, directions: int) -> Tensor:
    """Mean over evenly spread directions of the 1-D Wasserstein-1 distance: (..., C, E, 2) → (..., C)."""
    angle = (torch.arange(directions) + 0.5) * (math.pi / directions)
    lines = torch.stack([angle.cos(), angle.sin()])
    ours, theirs = (p.matmul(lines).sort(dim=-2).values for p in (points, target))
    return (ours - theirs).abs().mean((-2, -1))
