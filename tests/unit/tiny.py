"""Small real parts for tests: networks that run in milliseconds, stages of a few updates, images that are labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from msd import config
from msd.data.archive import LabelledImages
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep, Pairs
from msd.distill.tsm import TsmStep
from msd.draws import BatchDraws, Draws
from msd.networks import Preconditioned
from msd.networks.discriminator import Discriminator
from msd.networks.files import build_network

ROOT = Path(__file__).resolve().parents[2]
IMAGE_SHAPE = (1, 8, 8)
CLASSES = 4
BATCH = 4
ADAM = {"learning_rate": 1e-3, "betas": [0.0, 0.999]}
STAGE: dict[str, Any] = {
    "images": 6 * BATCH,
    "batch_size": BATCH,
    "student": ADAM,
    "fake_score": ADAM,
    "two_time_scale_ratio": 3,
    "ema_halflife_images": 8,
}
REGRESSION = {"weight": 0.5, "pairs": 12, "batch_size": 5, "metric": "l2"}


def network(seed: int = 0, **changes: Any) -> Preconditioned:
    """A network of 8 channels for 8×8 images. Its zero-initialised layers are filled, so that every gradient flows."""
    description = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "pixel_unshuffle": 2} | changes
    net = build_network(
        config.Network.model_validate(description), image_shape=IMAGE_SHAPE, num_conditions=CLASSES, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return net.eval().requires_grad_(False)


def data(count: int = 40) -> LabelledImages:
    """Images whose every pixel says their class: class c has the grey value 50 c plus a little noise."""
    labels = np.arange(count, dtype=np.int64) % CLASSES
    noise = np.random.default_rng(0).integers(0, 10, (count, *IMAGE_SHAPE))
    images = (50 * labels.reshape(-1, 1, 1, 1) + noise).astype(np.uint8)
    return LabelledImages(images=images, labels=labels, num_classes=CLASSES, sha256="of-no-importance")


def pairs() -> Pairs:
    """Regression pairs of all classes in turn."""
    count = REGRESSION["pairs"]
    draws = Draws(7)
    return Pairs(
        noise=draws.normal("noise", 0, (count, *IMAGE_SHAPE)),
        images=draws.normal("images", 0, (count, *IMAGE_SHAPE)).clamp(-1, 1),
        cond=torch.arange(count) % CLASSES,
    )


def tsm_step(seed: int = 0) -> TsmStep:
    settings = config.Tsm.model_validate({"images": 6 * BATCH, "batch_size": BATCH, "optimizer": ADAM})
    return TsmStep(network(2, model_channels=4), network(1), data(), settings, Draws(seed))


def dm_step(seed: int = 0, part: tuple[int, ...] = (1, 2), regression: bool = False, **changes: Any) -> DmStep:
    settings = config.Dm.model_validate(STAGE | {"regression": REGRESSION if regression else None} | changes)
    further = {"pairs": pairs()} if regression else {}
    return DmStep(network(2), network(1), network(3), torch.tensor(part), settings, Draws(seed), **further)


def adm_step(seed: int = 0, part: tuple[int, ...] = (1, 2), **changes: Any) -> AdmStep:
    settings = config.Adm.model_validate(STAGE | {"discriminator": ADAM, "generator_weight": 0.1} | changes)
    fake_score = network(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = Discriminator(*fake_score.features_shape)
    return AdmStep(
        network(2),
        network(1),
        fake_score,
        torch.tensor(part),
        settings,
        Draws(seed),
        data=data(),
        real=data().indices_of(list(part)),
        discriminator=discriminator,
        average=network(4),
    )


def draws_of(step: DmStep) -> BatchDraws:
    """The draws of the step's first batch."""
    (draws,) = step.draws.batches(0, step.batch_size)
    return draws


def images_and_conditions(step: DmStep) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a student's images, with gradient, and conditions of its part."""
    noise = Draws(9).normal("noise", 0, (BATCH, *step.student.image_shape))
    cond = step.part[torch.arange(BATCH) % len(step.part)]
    return step.student.generate(noise, cond), cond


def tensors(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, by its path."""
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    found: dict[str, torch.Tensor] = {}
    for key, value in items:
        found |= tensors(value, f"{prefix}/{key}")
    return found


def copies(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights as they are now."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def moved(net: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that differ from ``before``."""
    return {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
