"""What a network costs, without its weights: parameters, FLOPs and activations of a forward pass.

Everything is computed on torch's meta device, which knows shapes and holds no numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msd.config import Network, TextNetwork
from msd.networks.files import raw_network


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


def network_cost(network: Network | TextNetwork, image_shape: tuple[int, int, int], num_conditions: int) -> Cost:
    """Parameters, FLOPs and activations of a network for images, or latents, (C, H, W)."""
    channels, height, width = image_shape
    model: nn.Module
    with torch.device("meta"):
        level = torch.empty(1)
        if isinstance(network, TextNetwork):
            from msd.networks.latent import text_unet

            model = text_unet(network, image_shape)
            given = [torch.empty(1, *image_shape), level, torch.empty(1, *network.text_shape)]
        else:
            fold = network.pixel_unshuffle
            model = raw_network(network, image_shape, num_conditions)
            x = torch.empty(1, channels * fold**2, height // fold, width // fold)
            given = [x, level, *([torch.empty(1, num_conditions)] if num_conditions else [])]
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
        model(*given)
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    return Cost(parameters, counter.get_total_flops(), sum(kept.values()))
