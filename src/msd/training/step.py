"""What the engine asks of a training step, and the optimiser they share.

A step owns its networks and optimisers. The engine owns time: progress, checkpoints, the journal, signals.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from msd import config


class Step(Protocol):
    """One kind of training."""

    batch_size: int

    def __call__(self, start: int) -> dict[str, Tensor]:
        """Do one update, whose first image has global index ``start``; return 0-d tensors for the journal."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Updater:
    """AdamW on one network: linear warm-up, gradient-norm clipping, a count of its own updates."""

    def __init__(self, net: nn.Module, settings: config.Optimizer) -> None:
        self.settings = settings
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.updates = 0

    def apply(self) -> Tensor:
        """One update from the gradients at hand; returns their norm before clipping (0-d)."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.updates += 1
        rate = self.settings.learning_rate
        if self.settings.warmup_updates:
            rate *= min(self.updates / self.settings.warmup_updates, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


def minimise(loss: Tensor, *updaters: Updater) -> list[Tensor]:
    """One backward pass and one update of each network concerned; returns their gradient norms."""
    for updater in updaters:
        updater.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return [updater.apply() for updater in updaters]
