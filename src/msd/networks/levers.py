"""How a network computes, not what: device, precision, memory layout, compilation, recomputation."""

from __future__ import annotations

from typing import TypeVar

import torch

from msd import ranks
from msd.config import Compute
from msd.networks.backbone import Backbone

Net = TypeVar("Net", bound=Backbone)

VARIANTS_OF_A_BLOCK = 256  # shapes × with and without gradients; the compiler gives up at 8 unless told


def prepare(net: Net, device: torch.device, precision: str, compute: Compute) -> Net:
    """Bring a network to a device and set how it computes there.

    Args:
        net: changed in place.
        device: where to.
        precision: ``float32`` or ``bfloat16``; the weights stay float32 (float16 diverges).
        compute: layout, compilation, recomputation and sharding.
    """
    if compute.channels_last:
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    else:
        net.to(device)
    net.autocast = torch.bfloat16 if precision == "bfloat16" else None
    net.set_recompute(compute.gradient_checkpointing)
    if compute.compile:
        import torch._dynamo as dynamo  # over a second

        dynamo.config.recompile_limit = VARIANTS_OF_A_BLOCK
        for block in net.blocks:
            block.compile(dynamic=False)  # sizes differ between blocks, not between calls
    if compute.shard and ranks.world() > 1:
        ranks.shard(net.blocks, net.model)
    return net
