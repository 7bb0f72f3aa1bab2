"""Random streams as functions of (seed, role, global image index): a resumed run draws what an undisturbed one does.

The draw for a batch is one draw, named by the index of its first image; nothing depends on what was drawn before, so
no generator's state needs saving, and a rank can take its slice of the global draw.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stream_seed(seed: int, role: str, index: int) -> int:
    """A 63-bit seed from (seed, role, index)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{role}/{index}".encode()).digest()[:8], "big") >> 1


class Draws:
    """Draws of one run.

    Args:
        seed: of the run.
        device: where the results go. The draws themselves are made on the CPU, the same everywhere.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.device = seed, torch.device(device)

    def _generator(self, role: str, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, role, index))

    def normal(self, role: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """Unit normal float32."""
        return torch.randn(shape, generator=self._generator(role, index)).to(self.device)

    def uniform(self, role: str, index: int, count: int) -> Tensor:
        """(count,) float32 in [0, 1)."""
        return torch.rand(count, generator=self._generator(role, index)).to(self.device)

    def integers(self, role: str, index: int, count: int, low: int, high: int) -> Tensor:
        """(count,) int64 with low ≤ value < high, on the CPU (they index arrays there)."""
        return torch.randint(low, high, (count,), generator=self._generator(role, index))


def noise_of_images(seed: int, first: int, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Evaluation noise: image i's noise is a function of (seed, i) only. (count, C, H, W) float32."""
    draws = Draws(seed)
    return torch.stack([draws.normal("image", i, shape) for i in range(first, first + count)])
