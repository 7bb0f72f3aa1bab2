"""What a network costs, without its weights: parameters, FLOPs of a forward pass, memory of a training stage.

Everything is computed on torch's meta device, which knows shapes and holds no numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from msd.config import Network
from msd.networks.files import raw_network

Stage = Literal["tsm", "dm", "adm"]
FLOAT = 4  # bytes
TRAINED = 4 * FLOAT  # bytes per trained parameter: weight, gradient, two moments of Adam


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: trainable scalars.
        flops: of one forward pass of one image; a multiplication and an addition count as two.
        activation_bytes: what a forward pass of one image keeps for its backward pass, float32.
    """

    parameters: int
    flops: int
    activation_bytes: int

    @property
    def gflop(self) -> float:
        return self.flops / 1e9


def network_cost(network: Network, image_shape: tuple[int, int, int], num_conditions: int) -> Cost:
    """Parameters, FLOPs and activations of a network for images (C, H, W)."""
    fold = network.pixel_unshuffle
    channels, height, width = image_shape
    with torch.device("meta"):
        model = raw_network(network, image_shape, num_conditions)
        x = torch.empty(1, channels * fold**2, height // fold, width // fold)
        level = torch.empty(1)
        labels = torch.empty(1, num_conditions) if num_conditions else None
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no storage's address is used twice
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(x, level, labels)
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    return Cost(parameters, counter.get_total_flops(), sum(kept.values()))


def stage_memory(stage: Stage, student: Cost, teacher: Cost, batch_size: int) -> int:
    """Bytes that a training stage needs for networks, optimisers and activations in float32; an estimate.

    The fake score has the teacher's architecture. Student updates keep the student's activations, and in adm those of
    the fake score as well, through which the generator loss reaches the student; fake-score updates keep its own.
    """
    networks = student.parameters * (TRAINED + FLOAT) + teacher.parameters * FLOAT  # student and its EMA, teacher
    if stage == "tsm":
        return networks + batch_size * student.activation_bytes
    networks += teacher.parameters * TRAINED
    both = student.activation_bytes + teacher.activation_bytes
    most = both if stage == "adm" else max(student.activation_bytes, teacher.activation_bytes)
    return networks + batch_size * most
