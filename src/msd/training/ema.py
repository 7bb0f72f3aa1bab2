"""Exponential moving averages of weights, with a half-life in images and EDM's ramp-up."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from msd.config import Training


class Ema:
    """The average of a network.

    Args:
        net: what to average.
        halflife_images: images after which a weight's share has halved; 0 keeps the current weights.
        rampup: the half-life is at most this share of the images so far (EDM's ramp-up); 0 for none.

    Attributes:
        net: the averaged copy, in eval mode, without gradients.
    """

    def __init__(self, net: nn.Module, halflife_images: float, rampup: float) -> None:
        self.halflife, self.rampup = halflife_images, rampup
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, nimg: int, batch_size: int) -> None:
        """Take in the weights after ``nimg`` images, the last ``batch_size`` of them new."""
        halflife = min(self.halflife, nimg * self.rampup) if self.rampup else self.halflife
        beta = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
        averages, currents = [p.data for p in self.net.parameters()], [p.data for p in net.parameters()]
        torch._foreach_lerp_(averages, currents, 1 - beta)

    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state)


def averages_of(net: nn.Module, settings: Training, name: str) -> dict[str, Ema]:
    """One average per half-life of the settings: the first under ``name``, the others as ``name_ema_<images>``."""
    first, *others = settings.ema_halflives
    return {name: Ema(net, first, settings.ema_rampup)} | {
        f"{name}_ema_{halflife:g}": Ema(net, halflife, settings.ema_rampup) for halflife in others
    }
