"""The one seam that every network stands behind, so that TSM, DM and ADM are written once.

A backbone predicts x0 from a noised input at a level of its own noise grid, under a batch of conditions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """A conditional denoiser.

    Attributes:
        image_shape: (C, H, W) of what it denoises.
        num_conditions: number of classes, 0 if it knows none: an unconditional network, or one conditioned on text.
        noise_grid: (1000,) noise levels, smallest first.
        known_sigmas: the smallest and the largest level that it can be asked for.
        sigma_data: standard deviation of the data; infinite: losses are those of ε.
        model: the raw network inside; all weights are its.
        autocast: type of the raw network's inner computations; None: that of its weights.
        description: how to build it again; ``networks.files`` fills it.
    """

    image_shape: tuple[int, int, int]
    num_conditions: int
    noise_grid: Tensor
    known_sigmas: tuple[float, float]
    sigma_data: float
    model: nn.Module
    autocast: torch.dtype | None = None

    def __init__(self) -> None:
        super().__init__()
        self.description: dict[str, Any] = {}

    @property
    def blocks(self) -> list[nn.Module]:
        """The pieces of the raw network that are compiled and sharded one by one."""
        return []

    def set_recompute(self, on: bool) -> None:
        """Whether blocks keep nothing for the backward pass but their inputs, and compute the rest again there."""

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one condition: () for a class."""
        return ()

    @property
    def is_conditional(self) -> bool:
        """Whether it looks at its conditions at all."""
        return bool(self.num_conditions)

    @property
    def num_classes(self) -> int:
        """Conditions to choose from: an unconditional network has one, which it does not look at."""
        return max(self.num_conditions, 1)

    @property
    def has_unconditional(self) -> bool:
        """Whether it has learnt to predict without a condition, which guidance compares with."""
        return False

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level that the network knows; σ itself where it knows all."""
        return sigma

    @property
    @abstractmethod
    def student_level(self) -> float:
        """The noise level at which a one-step student works."""

    @property
    @abstractmethod
    def features_shape(self) -> tuple[int, int]:
        """Channels and resolution of the bottleneck: the encoder's last output."""

    @abstractmethod
    def denoise(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        """x0 prediction, float32: x (B, C, H, W), level (B,) or 0-d → (B, C, H, W).

        Args:
            cond: classes (B,) int64, or the hidden states of prompts (B, L, D).
        """

    @abstractmethod
    def denoise_unconditional(self, x: Tensor, level: Tensor) -> Tensor:
        """As ``denoise`` without a condition; means something only if labels were dropped in training."""

    def guided(self, x0: Tensor, x: Tensor, level: Tensor, scale: float) -> Tensor:
        """Its prediction ``x0`` under classifier-free guidance: x0(∅) + s (x0(c) − x0(∅)); for s = 1 as it is.

        Args:
            x0: what ``denoise`` made of ``x`` at ``level`` under the conditions, (B, C, H, W).
            scale: s.
        """
        if scale == 1:
            return x0
        unconditional = self.denoise_unconditional(x, level)
        return unconditional + scale * (x0 - unconditional)

    @abstractmethod
    def denoise_with_features(self, x: Tensor, level: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """As ``denoise``, and the bottleneck (B, c, h, w) of the same pass."""

    @abstractmethod
    def features(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        """The bottleneck alone; costs the encoder only."""

    @abstractmethod
    def condition_embeddings(self) -> Tensor:
        """The network's own embedding of each condition, (num_conditions, E) float32."""

    def visible(self, x: Tensor) -> Tensor:
        """What it denoises (B, C, H, W), as something to look at: (B, 1 or 3, H, W) in about [-1, 1]."""
        return x

    def generate(self, noise: Tensor, cond: Tensor) -> Tensor:
        """One step: unit noise (B, C, H, W) under conditions (B,) → images (B, C, H, W). NFE 1."""
        level = torch.full((), self.student_level, dtype=torch.float32, device=noise.device)  # no copy from the host
        return self.denoise(noise * level, level, cond)

    @property
    def num_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(p.numel() for p in self.parameters())
