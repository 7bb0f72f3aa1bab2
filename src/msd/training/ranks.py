"""The processes that train one student together: who this is, and the few things they say to each other.

torchrun starts them (``torchrun --nproc-per-node 4 -m msd dm …``); without it there is one, and nothing here costs
anything. Networks are not wrapped. A step calls several methods of several networks and stops gradients differently
at each, which a wrapper around one forward pass cannot know; gradients are summed where an optimiser uses them.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from msd.errors import ConfigError

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # rank 0 may wait for another job's result


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process writes journals, checkpoints and results."""
    return rank() == 0


def local_device(wanted: torch.device) -> torch.device:
    """The device of this process: the GPU of its number on its node, or the CPU."""
    if wanted.type != "cuda" or world() == 1:
        return wanted
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join(device: torch.device) -> None:
    """Find the other processes. Once is enough; alone, nothing is done.

    Raises:
        ConfigError: there are more processes on this node than GPUs.
    """
    if world() == 1 or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                "There are more processes than GPUs on this node.",
                why=f"process {device.index} of this node sees {torch.cuda.device_count()} GPU(s)",
                todo="Start torchrun with --nproc-per-node equal to the number of GPUs that the job asks for.",
            )
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def sum_gradients(gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their sums over all processes, in one message per type."""
    if world() == 1:
        return
    for dtype in {g.dtype for g in gradients}:
        group = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.flatten() for g in group])
        torch.distributed.all_reduce(flat)
        torch._foreach_copy_(group, [part.view_as(g) for part, g in zip(_split(flat, group), group, strict=True)])


def _split(flat: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return flat.split([t.numel() for t in like])


def total(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes."""
    if world() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def any_of(flag: bool) -> bool:
    """Whether a flag is set on any process. Does not wait for a GPU."""
    if world() == 1:
        return flag
    return bool(total(torch.tensor(int(flag))))


def from_first(value: T) -> T:
    """What the first process has, on all of them."""
    if world() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
