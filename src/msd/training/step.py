"""What the engine asks of a training step, and how a step's networks learn.

A step owns its networks and optimisers. The engine owns time: progress, checkpoints, the journal, signals.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from msd import config, ranks
from msd.data.archive import TrainingImages
from msd.draws import BatchDraws, Draws
from msd.training.ema import Ema

Terms = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The weighted terms of a loss, and what to journal; each is a mean over a micro-batch."""


@dataclass(frozen=True)
class Watch:
    """A journalled value that warns: below a limit, or fallen to a share of its largest so far."""

    metric: str
    kind: Literal["below", "fallen_to"]
    limit: float
    meaning: str


@dataclass(frozen=True)
class Picture:
    """What a step shows of itself: images (rows, columns, C, H, W) in [-1, 1] and a title for each column."""

    images: Tensor
    titles: list[str]


class Step(ABC):
    """One kind of training.

    Attributes:
        batch_size: images of one update, over all processes.
        draws: random streams.
        updaters: who learns, by name.
        emas: weight averages by the name of the file that they are exported to.
        watches: values that warn.
        data_wait: seconds that updates have waited for data so far.
    """

    batch_size: int
    draws: Draws
    updaters: dict[str, Updater]
    emas: dict[str, Ema]
    watches: tuple[Watch, ...] = ()
    data_wait: float = 0.0

    @abstractmethod
    def __call__(self, start: int) -> dict[str, Tensor]:
        """Do one update, whose first image has global index ``start``.

        Returns:
            0-d tensors for the journal, each multiplied by this process's share of the batch.
        """

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, by name."""

    def update_by(
        self, start: int, terms: Callable[[BatchDraws], Terms], still: Sequence[nn.Module] = ()
    ) -> dict[str, Tensor]:
        """The whole of an update in which all that learns learns from one loss; see ``__call__`` and ``learn``."""
        values: dict[str, Tensor] = {}
        batches = self.draws.batches(start, self.batch_size)
        losses = losses_of(((draws, terms(draws)) for draws in batches), values)
        learn(losses, list(self.updaters.values()), still)
        self.average(start)
        return values

    def average(self, start: int) -> None:
        """Let the averages take in the weights after the update that began at ``start``."""
        for ema in self.emas.values():
            ema.update(start + self.batch_size, self.batch_size)

    def fetch(self, data: TrainingImages, indices: Tensor, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and conditions (B, …) at ``indices`` (B,), on the run's device."""
        began = time.perf_counter()
        images, cond = data.batch(indices)
        self.data_wait += time.perf_counter() - began
        return draws.to_device(images), draws.to_device(cond)

    def picture(self) -> Picture | None:
        """Teacher, fake score and student side by side on fixed noise, as far as the step has them."""
        return None

    def counts(self, nimg: int) -> dict[str, int]:
        """Further progress after ``nimg`` images, for the journal."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            kind: {name: thing.state_dict() for name, thing in things.items()} for kind, things in self._state().items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for kind, things in self._state().items():
            for name, thing in things.items():
                thing.load_state_dict(state[kind][name])

    def _state(self) -> dict[str, dict[str, Any]]:
        return {"networks": self.networks(), "updaters": self.updaters, "emas": self.emas}


class Updater:
    """AdamW on one network: linear warm-up, clipping of the gradient's norm, no step on a gradient that is not finite.

    All decisions fall on the device, so nothing waits for it. The functional form of torch's AdamW does without the
    class, whose import of the compiler takes over a second of every job.

    Attributes:
        updates: calls of ``apply``; the warm-up counts them.
        norm: of the last gradient before clipping, 0-d.
        skipped: gradients that were not finite, 0-d; such an update is left out.
        skipped_in_a_row: how many of the last ones, 0-d.
    """

    def __init__(self, net: nn.Module, settings: config.Optimizer) -> None:
        self.net, self.settings, self.updates = net, settings, 0
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self._mean = [torch.zeros_like(p) for p in self.parameters]
        self._square = [torch.zeros_like(p) for p in self.parameters]
        device = self.parameters[0].device
        self._steps = [torch.zeros((), device=device) for _ in self.parameters]
        self.norm, self.skipped, self.skipped_in_a_row = (torch.zeros((), device=device) for _ in range(3))

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        warmup = self.settings.warmup_updates
        return self.settings.learning_rate * (min(self.updates / warmup, 1) if warmup else 1)

    @torch.no_grad()
    def apply(self) -> None:
        """One update from the gradients at hand, summed over all processes."""
        graded = {i: p.grad for i, p in enumerate(self.parameters) if p.grad is not None}
        used, gradients = list(graded), list(graded.values())
        ranks.sum_gradients(gradients)
        self.norm = ranks.whole(nn.utils.clip_grad_norm_([self.parameters[i] for i in used], self.settings.clip_norm))
        bad = (~self.norm.isfinite()).float()
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        self.updates += 1
        beta1, beta2 = self.settings.betas
        adamw(
            [self.parameters[i] for i in used],
            gradients,
            [self._mean[i] for i in used],
            [self._square[i] for i in used],
            [],
            [self._steps[i] for i in used],
            fused=True,
            found_inf=bad,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=self.learning_rate,
            weight_decay=self.settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "mean": self._mean,
            "square": self._square,
            "counts": torch.stack([*self._steps, self.skipped, self.skipped_in_a_row]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for mine, saved in zip(self._mean + self._square, state["mean"] + state["square"], strict=True):
            mine.copy_(saved)
        counts = state["counts"].to(self.skipped.device)
        *self._steps, self.skipped, self.skipped_in_a_row = counts.clone().unbind()


def learn(losses: Iterable[Tensor], movers: Sequence[Updater], still: Sequence[nn.Module]) -> None:
    """One update of each mover from the sum of losses, one micro-batch at a time.

    Args:
        losses: 0-d, one per micro-batch, each multiplied by its share of the batch; each is made when the backward
            pass of the one before is over.
        movers: who may learn.
        still: who may not; their parameters must come out without gradients.
    """
    for net in [*still, *(updater.net for updater in movers)]:
        net.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()
    for net in still:
        assert all(p.grad is None for p in net.parameters()), f"{type(net).__name__} must not learn in this update"
    for updater in movers:
        updater.apply()


def losses_of(parts: Iterable[tuple[BatchDraws, Terms]], values: dict[str, Tensor]) -> Iterator[Tensor]:
    """The loss of each micro-batch, multiplied by its share of the batch, as ``learn`` asks for them.

    Args:
        parts: each micro-batch's draws and terms, made when asked for.
        values: what is to be journalled is added up here.
    """
    for draws, (terms, seen) in parts:
        for name, value in seen.items():
            value = draws.share * value.detach().float()
            values[name] = values[name] + value if name in values else value
        yield draws.share * torch.stack(list(terms.values())).sum()
