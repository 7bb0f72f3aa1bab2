"""Random streams as functions of (seed, role, global image index): a resumed run draws what an undisturbed one does.

The draw for a batch is one draw, named by the index of its first image; nothing depends on what was drawn before, so
no generator's state needs saving. Ranks and micro-batches take their rows of the global draw, so every split of a
batch sees the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from msd.errors import ConfigError


def stream_seed(seed: int, role: str, index: int) -> int:
    """A 63-bit seed from (seed, role, index)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{role}/{index}".encode()).digest()[:8], "big") >> 1


class Draws:
    """Draws of one run.

    Args:
        seed: of the run.
        device: where the results go. The draws themselves are made on the CPU, the same everywhere.
        rank, world: which of how many processes this is; each takes its rows of every batch.
        micro_batch: most images of a batch in one pass on this process; None: all of its rows at once.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.seed, self.device = seed, torch.device(device)
        self.rank, self.world, self.micro_batch = rank, world, micro_batch

    def _generator(self, role: str, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, role, index))

    def normal(self, role: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """Unit normal float32, on the CPU."""
        return torch.randn(shape, generator=self._generator(role, index))

    def uniform(self, role: str, index: int, count: int) -> Tensor:
        """(count,) float32 in [0, 1), on the CPU."""
        return torch.rand(count, generator=self._generator(role, index))

    def integers(self, role: str, index: int, count: int, low: int, high: int) -> Tensor:
        """(count,) int64 with low ≤ value < high, on the CPU (they index arrays there)."""
        return torch.randint(low, high, (count,), generator=self._generator(role, index))

    def batches(self, index: int, count: int) -> list[BatchDraws]:
        """This process's micro-batches of the global batch of ``count`` images whose first has the number ``index``.

        Raises:
            ConfigError: there are more processes than images.
        """
        if count < self.world:
            raise ConfigError(
                f"A batch of {count} cannot be shared by {self.world} processes.",
                todo="Start fewer, or enlarge the batch.",
            )
        most, own = -(-count // self.world), (self.rank + 1) * count // self.world - self.rank * count // self.world
        parts = min(-(-most // (self.micro_batch or most)), own)
        whole: dict[tuple[str, int], Tensor] = {}
        return [BatchDraws(self, index, count, part, parts, whole) for part in range(parts)]


class BatchDraws:
    """The rows of one part of a global batch's draws.

    Args:
        draws: of the run.
        index: number of the batch's first image.
        count: images of the whole batch.
        part, parts: which of how many parts of this process's rows, alike in size as far as can be.
        whole: draws of the whole batch that its parts have in common.

    Attributes:
        first: number of this part's first image.
        size: images of this part.
        share: this part's share of the batch; a mean over the batch is the sum of its parts' means by their shares.
    """

    def __init__(
        self, draws: Draws, index: int, count: int, part: int, parts: int, whole: dict[tuple[str, int], Tensor]
    ) -> None:
        self._draws, self.index, self._count, self._part, self._parts = draws, index, count, part, parts
        self._whole = whole
        first, end = (r * count // draws.world for r in (draws.rank, draws.rank + 1))
        own = end - first
        self._rows = slice(first + part * own // parts, first + (part + 1) * own // parts)
        self.first, self.size = index + self._rows.start, self._rows.stop - self._rows.start
        self.share = self.size / count

    def sized(self, count: int) -> BatchDraws:
        """The same part of a batch of ``count`` images that goes with this one."""
        return BatchDraws(self._draws, self.index, count, self._part, self._parts, self._whole)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Bring a tensor of the CPU to the run's device without waiting for what that is doing."""
        device = self._draws.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def normal(self, role: str, shape: tuple[int, ...]) -> Tensor:
        """Unit normal float32 (size, *shape) on the run's device."""
        count = self._count
        return self.to_device(self._of_whole(role, lambda: self._draws.normal(role, self.index, (count, *shape))))

    def uniform(self, role: str) -> Tensor:
        """(size,) float32 in [0, 1) on the run's device."""
        return self.to_device(self._of_whole(role, lambda: self._draws.uniform(role, self.index, self._count)))

    def integers(self, role: str, low: int, high: int) -> Tensor:
        """(size,) int64 with low ≤ value < high, on the CPU."""
        return self._of_whole(role, lambda: self._draws.integers(role, self.index, self._count, low, high))

    def _of_whole(self, role: str, draw: Callable[[], Tensor]) -> Tensor:
        if self.size == self._count:
            return draw()
        key = (role, self._count)
        if key not in self._whole:
            self._whole[key] = draw()
        return self._whole[key][self._rows]


def noise_of_images(seed: int, first: int, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Evaluation noise: image i's noise is a function of (seed, i) only. (count, C, H, W) float32."""
    draws = Draws(seed)
    return torch.stack([draws.normal("image", i, shape) for i in range(first, first + count)])
