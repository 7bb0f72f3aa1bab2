"""The processes that train one student together: who this is, and the few things they say to each other.

torchrun starts them (``torchrun --nproc-per-node 4 -m msd dm …``); without it there is one, and nothing here costs
anything. By default every process holds whole networks, which are not wrapped: a step calls several methods of several
networks and stops gradients differently at each, which a wrapper around one forward pass cannot know. Gradients are
summed where an optimiser uses them. With ``shard``, torch's FSDP2 spreads weights, gradients and optimiser states.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
    """Replace gradients by their sums over all processes. Those of sharded networks are sums already."""
    if world() == 1 or is_sharded(gradients[0]):
        return
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(list(gradients), [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


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


def gathered(value: T) -> list[T]:
    """The values of all processes in their order on the first one, an empty list on the others. By way of the CPU."""
    if world() == 1:
        return [value]
    box: list[Any] | None = [None] * world() if is_first() else None
    torch.distributed.gather_object(value, box)
    return box or []


def shard(blocks: Iterable[nn.Module], root: nn.Module) -> None:
    """Spread a network over the processes: each keeps its share of every parameter and gathers a block when it runs.

    Args:
        blocks: modules inside ``root`` to be gathered one at a time.
        root: called by its ``forward`` only.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(root.parameters()).device
    mesh = init_device_mesh(device.type, (world(),))
    for module in [*blocks, root]:
        # the root too: networks are frozen and unfrozen between passes, which only what is spread takes note of
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # losses carry their share of the batch, so gradients add up; gloo knows plain sums only
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a share of the tensor only."""
    return hasattr(tensor, "full_tensor")


def share(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """A tensor gathered from all processes, which all have to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def whole_state(tree: Any) -> Any:
    """A state with its tensors gathered, on the CPU where they were spread; all processes have to take part."""
    if isinstance(tree, Tensor):
        return whole(tree).cpu() if is_sharded(tree) else tree
    if isinstance(tree, dict):
        return {key: whole_state(value) for key, value in tree.items()}
    return [whole_state(value) for value in tree] if isinstance(tree, list) else tree


def spread_state(tree: Any, like: Any) -> Any:
    """The reverse of ``whole_state``: tensors spread as those of ``like`` are."""
    if isinstance(like, Tensor) and is_sharded(like):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(tree.to(like.device), like.device_mesh, like.placements)
    if isinstance(like, dict):
        return {key: spread_state(value, like[key]) if key in like else value for key, value in tree.items()}
    if isinstance(like, list):
        return [spread_state(value, template) for value, template in zip(tree, like, strict=True)]
    return tree
