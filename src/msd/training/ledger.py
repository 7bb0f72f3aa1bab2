"""Memory and FLOPs of everything that torch does, operation by operation."""

from __future__ import annotations

import contextlib
import itertools
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
SAME_WORK = {  # torch knows the FLOPs of attention on GPUs only
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}
PRIME = 10007  # divides no size of a network, so a tensor's bytes say whether it grows with the batch


@dataclass(frozen=True)
class Iteration:
    """From one draw of a batch to the next: one update, or a student's and its critics' from the same images.

    Attributes:
        flops: per image; a multiplication and an addition count as two.
        fixed, per_image: bytes alive after each allocation, (N,) float64: those of any batch, and those of each image.
        gradients: bytes of the gradients at its end.
    """

    flops: float
    fixed: NDArray[np.float64]
    per_image: NDArray[np.float64]
    gradients: int


class FlopCount(TorchDispatchMode):
    """Counts FLOPs while it is active.

    Attributes:
        flops: so far; a multiplication and an addition count as two, and what is computed again counts again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to protect this class from the compiler, torch would import it, which takes a second of every job."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(SAME_WORK.get(func._overloadpacket, func._overloadpacket))
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out


@contextlib.contextmanager
def counted_flops() -> Iterator[FlopCount]:
    """Count, with compiled networks run as they are written: what meets a counter would never be compiled."""
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext(), FlopCount() as count:
        yield count


class Ledger(FlopCount):
    """Counts memory as well. To tell what grows with the batch, this must have a multiple of ``PRIME`` images.

    Attributes:
        fixed, growing: bytes alive now: of tensors whose size the number of images does not change, and of others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.growing = 0, 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._allocations: list[tuple[int, int]] = []
        self._marks: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return out

    @property
    def peak(self) -> int:
        """Most bytes alive at once so far."""
        return max((fixed + growing for fixed, growing in self._allocations), default=0)

    def mark(self) -> None:
        """An iteration begins."""
        self._marks.append((len(self._allocations), self.flops, self.fixed))
        self._allocations.append((self.fixed, self.growing))

    def iterations(self, images: int, before: int) -> Iterator[Iteration]:
        """What happened from each mark to the next, the last until now.

        Args:
            images: of a batch.
            before: fixed bytes that were alive before the first mark.
        """
        self.mark()
        for (first, flops, _), (end, flops_at_end, fixed_at_end) in itertools.pairwise(self._marks):
            fixed, growing = np.array(self._allocations[first:end], np.float64).T
            yield Iteration((flops_at_end - flops) / images, fixed, growing / images, fixed_at_end - before)

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's memory, until it is gone; once, however often it is seen."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def change(by: int) -> None:
            if size % PRIME:
                self.fixed += by
            else:
                self.growing += by

        def gone(_: Any) -> None:
            del self._alive[key]
            change(-size)

        self._alive[key] = weakref.ref(storage, gone)
        change(size)
        self._allocations.append((self.fixed, self.growing))
