"""What a training step takes, memory and FLOPs, found without doing it.

The step itself runs once, on tensors with a shape and a type but no numbers (torch's fake tensors), while a ledger
counts. So no second description of the stages has to be kept in agreement with them. Not counted: what a kernel needs
inside (cuDNN's workspaces), the allocator's gaps, a CUDA context (some hundred MB) and what compilation changes.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from msd.config import Compute, Network, TextNetwork, Training
from msd.draws import BatchDraws, Draws
from msd.networks import Backbone
from msd.networks.files import raw_network
from msd.networks.layers import Resample
from msd.networks.precond import PRECONDITIONINGS
from msd.training.ledger import PRIME, Iteration, Ledger
from msd.training.step import Step

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=Training)


@dataclass(frozen=True)
class Footprint:
    """What a step takes on one device.

    Attributes:
        networks: bytes of networks, averages and the optimisers' moments, which are there all the time.
        iterations: of the step.
        sharded: several processes hold a share each of what is there all the time.
    """

    networks: int
    iterations: tuple[Iteration, ...]
    sharded: bool = False

    def memory(self, micro_batch: int, batch_size: int, processes: int = 1) -> int:
        """Most bytes on one device at once.

        Args:
            micro_batch: images at once on one device.
            batch_size: images of an update, over all devices.
            processes: that train together, one device each; they sum their gradients in a flat buffer. Sharded, they do
                without; that gradients are spread as well, and that blocks are gathered when they run, is not counted.
        """
        elsewhere = self.networks - self.networks // processes if self.sharded else 0
        summed = processes > 1 and not self.sharded  # in a buffer of its own
        several = micro_batch < -(-batch_size // processes)  # then the gradients of those before are there as well
        peaks = []
        for x in self.iterations:
            peaks.append(float((x.fixed + micro_batch * x.per_image).max()) + several * x.gradients)
            peaks.append(self.networks + (1 + summed) * x.gradients)
        return math.ceil(max(peaks)) - elsewhere


class DryRun(Generic[S]):
    """Builds the parts of a step without numbers, and counts what the step takes.

    Args:
        settings: of the stage.
        compute: recomputation counts, compilation does not.
        gpu: count as on a GPU, where autocast leaves more operations in float32 than on the CPU.

    Attributes:
        settings: the same with a batch that the ledger understands, for the step.
        draws: for the step.
    """

    def __init__(self, settings: S, compute: Compute, *, gpu: bool) -> None:
        self._compute, self._gpu = compute, gpu
        regression = getattr(settings, "regression", None)
        unit = math.gcd(settings.batch_size, regression.batch_size) if regression else settings.batch_size
        self._images = settings.batch_size // unit * PRIME
        changes: dict[str, Any] = {"batch_size": self._images}
        if regression:
            changes["regression"] = regression.model_copy(update={"batch_size": regression.batch_size // unit * PRIME})
        self.settings = settings.model_copy(update=changes)
        self._fake, self._ledger = FakeTensorMode(allow_non_fake_inputs=True), Ledger()
        self.draws = _Draws(self._ledger)

    def hollow(self, make: Callable[[], M]) -> M:
        """A module whose parameters have no numbers."""
        with self._fake, self._ledger:
            return make()

    def network(
        self, network: Network | TextNetwork, image_shape: tuple[int, int, int], num_conditions: int
    ) -> Backbone:
        """A frozen network for images (C, H, W), set to compute as ``levers.prepare`` would set it.

        Raises:
            ConfigError: the images' size does not suit the network.
        """
        net: Backbone
        widening: tuple[type[nn.Module], ...] = (nn.GroupNorm, nn.LayerNorm)
        if isinstance(network, TextNetwork):
            from diffusers.models.upsampling import Upsample2D

            from msd.networks.latent import LatentDenoiser, text_unet

            net = LatentDenoiser.of(self.hollow(lambda: text_unet(network, image_shape)), network, image_shape)
            widening += (Upsample2D,)
        else:
            raw = self.hollow(lambda: raw_network(network, image_shape, num_conditions))
            preconditioning = PRECONDITIONINGS[network.preconditioning]
            net = preconditioning(raw, image_shape=image_shape, pixel_unshuffle=network.pixel_unshuffle)
        net.autocast = torch.bfloat16 if self.settings.precision == "bfloat16" else None
        net.set_recompute(self._compute.gradient_checkpointing)
        for layer in net.modules():
            widens = isinstance(layer, widening) or (isinstance(layer, Resample) and layer.up and layer.box)
            if widens and net.autocast and self._gpu:
                layer.register_forward_pre_hook(_to_float32)
        return net.eval().requires_grad_(False)

    def data(self, net: Backbone) -> NoImages:
        """As many images as are asked for, each under one condition of a network."""
        return NoImages(net.image_shape, net.condition_shape)

    def measure(self, make_step: Callable[[], Step]) -> Footprint:
        """What one call of a step takes.

        Args:
            make_step: puts the step together from parts that this object has made.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # copy.deepcopy does
            with self._ledger:
                step = make_step()
            networks = self._ledger.fixed
            with _alone(), self._fake, self._ledger:
                step(0)
        iterations = tuple(self._ledger.iterations(self._images, networks))
        return Footprint(networks, iterations, self._compute.shard)


class _Draws(Draws):
    """Tells the ledger where an iteration begins."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(seed=0)
        self._ledger = ledger

    def batches(self, index: int, count: int) -> list[BatchDraws]:
        self._ledger.mark()
        return super().batches(index, count)


class NoImages:
    """Images and conditions of some shape without numbers; stands for a part's conditions too."""

    def __init__(self, image_shape: tuple[int, ...], condition_shape: tuple[int, ...]) -> None:
        self.image_shape, self.condition_shape = image_shape, condition_shape

    def __len__(self) -> int:
        return 1

    def __getitem__(self, indices: Tensor) -> Tensor:
        dtype = torch.float32 if self.condition_shape else torch.int64
        return torch.empty(len(indices), *self.condition_shape, dtype=dtype)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty(len(indices), *self.image_shape), self[indices]

    def some_conditions(self, count: int) -> Tensor:
        return self[torch.arange(count)]


def _to_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What autocast does before a normalisation or a repetition of pixels on a GPU, but not on the CPU."""
    return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """As if no other process trained with this one."""
    world = os.environ.pop("WORLD_SIZE", None)
    try:
        yield
    finally:
        if world is not None:
            os.environ["WORLD_SIZE"] = world
