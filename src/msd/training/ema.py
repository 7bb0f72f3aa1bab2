"""Exponential moving averages of weights, with a half-life in images and EDM's ramp-up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from msd import ranks
from msd.config import Training


class Ema:
    """The average of a network's weights.

    Args:
        net: what to average.
        halflife_images: images after which a weight's share has halved; 0 keeps the current weights.
        rampup: the half-life is at most this share of the images so far (EDM's ramp-up); 0 for none.
        start: a network of the same shape whose weights the average starts from; None: ``net``.

    Attributes:
        averages: one tensor for each parameter of the network, in its order.
    """

    def __init__(self, net: nn.Module, halflife_images: float, rampup: float, start: nn.Module | None = None) -> None:
        self._net, self.halflife, self.rampup = net, halflife_images, rampup
        self.averages = [p.detach().clone() for p in (start or net).parameters()]

    @torch.no_grad()
    def update(self, nimg: int, batch_size: int) -> None:
        """Take in the weights after ``nimg`` images, the last ``batch_size`` of them new."""
        halflife = min(self.halflife, nimg * self.rampup) if self.rampup else self.halflife
        beta = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
        torch._foreach_lerp_(self._averages(), self._current(), 1 - beta)

    @contextlib.contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The network in eval mode with the averages for its weights; it has its own back afterwards."""
        current, training = self._current(), self._net.training
        own = [t.clone() for t in current]
        torch._foreach_copy_(current, self._averages())
        try:
            yield self._net.eval()
        finally:
            torch._foreach_copy_(current, own)
            self._net.train(training)

    def _current(self) -> list[torch.Tensor]:
        return [ranks.share(p.detach()) for p in self._net.parameters()]

    def _averages(self) -> list[torch.Tensor]:
        return [ranks.share(t) for t in self.averages]

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.averages, state["averages"], strict=True):
            mine.copy_(saved)


def averages_of(net: nn.Module, settings: Training, name: str, start: nn.Module | None = None) -> dict[str, Ema]:
    """One average per half-life of the settings: the first under ``name``, the others as ``name_ema_<images>``."""
    first, *others = settings.ema_halflives
    names = {name: first} | {f"{name}_ema_{halflife:.15g}": halflife for halflife in others}
    return {key: Ema(net, halflife, settings.ema_rampup, start) for key, halflife in names.items()}
