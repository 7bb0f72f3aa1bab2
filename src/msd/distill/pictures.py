"""What a stage shows of itself: the same noise through teacher, fake score and student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from msd.config import Sampler
from msd.draws import Draws
from msd.networks import sample_teacher
from msd.training.step import Picture

PICTURE_ROWS = 8
SAMPLER = Sampler(num_steps=10).model_dump()


@torch.no_grad()
def sampled_side_by_side(
    samplers: Mapping[str, Any], one_step: Mapping[str, Any], draws: Draws, cond: Tensor
) -> Picture:
    """One row per condition, one column per network, the same noise along a row.

    Args:
        samplers: title → backbone to draw from in many steps (10 of Heun's).
        one_step: title → backbone that generates in one step.
        draws: whose noise, the same at every call.
        cond: (N,) int64.
    """
    cond = cond.to(draws.device)
    shape = next(iter([*samplers.values(), *one_step.values()])).image_shape
    noise = draws.normal("picture", 0, (len(cond), *shape)).to(draws.device)
    columns = [net.visible(sample_teacher(net, noise, cond, SAMPLER)) for net in samplers.values()]
    columns += [net.visible(net.generate(noise, cond)) for net in one_step.values()]
    return Picture(torch.stack([c.float() for c in columns], dim=1), [*samplers, *one_step])
