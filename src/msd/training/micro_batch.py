"""How many images of a batch go through the networks at once: as many as the device is predicted to hold."""

from __future__ import annotations

from collections.abc import Callable

import torch

from msd import ranks
from msd.config import Compute
from msd.errors import ConfigError
from msd.training.footprint import Footprint

USABLE = 0.9  # of a device's memory; the rest is for what a footprint does not count
GIB = 2**30


def pick_micro_batch(footprint: Footprint, batch_size: int, memory: int, processes: int = 1, where: str = "") -> int:
    """The largest micro-batch that a device holds: a process's share of the batch, or one of its equal parts.

    Args:
        footprint: of the step.
        batch_size: images of an update, over all processes.
        memory: bytes of the device.
        processes: that train together, one device each.
        where: what is trained, for the message.

    Raises:
        ConfigError: not even one image at a time fits.
    """
    rows = -(-batch_size // processes)
    for size in sorted({-(-rows // parts) for parts in range(1, rows + 1)}, reverse=True):
        if fits(footprint.memory(size, batch_size, processes), memory):
            return size
    raise ConfigError(
        "The memory does not suffice for one image at a time.",
        where=where,
        why=f"{footprint.memory(1, batch_size, processes) / GIB:.1f} GiB are needed, {footprint.networks / GIB:.1f} of "
        f"them for networks and optimisers; {USABLE:.0%} of the device's are {USABLE * memory / GIB:.1f} GiB",
        todo="Set compute.gradient_checkpointing, or precision: bfloat16 in the recipe, or take GPUs with more memory; "
        "more of the same help with compute.shard only. compute.micro_batch: 1 tries it all the same.",
    )


def fits(needed: int, memory: int) -> bool:
    """Whether a device of ``memory`` bytes is to be trusted with ``needed`` predicted ones."""
    return needed <= USABLE * memory


def micro_batch_here(
    device: torch.device, compute: Compute, batch_size: int, footprint: Callable[[], Footprint], label: str
) -> int | None:
    """The micro-batch to begin with on this process's device, the same for all processes that train together.

    Args:
        footprint: called only where it decides.
        others: as for ``pick_micro_batch``.

    Returns:
        None on the CPU, which takes the whole batch at once, and where the configuration names one.

    Raises:
        ConfigError: see ``pick_micro_batch``.
    """
    if device.type != "cuda" or compute.micro_batch is not None:
        return None
    ranks.join(device)
    picked = None
    if ranks.is_first():
        memory = torch.cuda.get_device_properties(device).total_memory
        picked = pick_micro_batch(footprint(), batch_size, memory, ranks.world(), label)
    return ranks.from_first(picked)
