"""Small real parts for tests of text-conditional denoisers: a UNet of latents, states of text, and steps with them."""

from __future__ import annotations

from typing import Any

import torch
from tiny import ADAM, BATCH, STAGE
from torch import Tensor

from msd import config
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep
from msd.distill.tsm import TsmStep
from msd.draws import Draws
from msd.networks.discriminator import Discriminator
from msd.networks.latent import LatentDenoiser, build_latent

LATENT_SHAPE = (4, 8, 8)
TEXT_LENGTH = 6
WIDTH = 16
UNET: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


def text_network(text_length: int = TEXT_LENGTH, **changes: Any) -> config.TextNetwork:
    return config.TextNetwork(architecture="unet2d", unet=UNET | changes, text_length=text_length)


def latent(seed: int = 0, side: int = LATENT_SHAPE[-1], **changes: Any) -> LatentDenoiser:
    """A denoiser whose states of the empty prompt are set, as a teacher's file has them."""
    net = build_latent(text_network(**changes), (LATENT_SHAPE[0], side, side), seed)
    net.empty.copy_(texts(1, role="empty")[0])
    return net.eval().requires_grad_(False)


def texts(count: int, role: str = "text") -> Tensor:
    """Hidden states (count, L, D) of prompts."""
    return Draws(11).normal(role, 0, (count, TEXT_LENGTH, WIDTH))


class Latents:
    """Latents with the states of their prompts, in memory."""

    def __init__(self, count: int = 12) -> None:
        self._latents, self._text = Draws(12).normal("latents", 0, (count, *LATENT_SHAPE)), texts(count)

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._latents[indices], self._text[indices]

    def some_conditions(self, count: int) -> Tensor:
        return self._text[:count]


def latent_tsm_step(seed: int = 0) -> TsmStep:
    """A student with half the widths."""
    settings = config.Tsm.model_validate({"images": 6 * BATCH, "batch_size": BATCH, "optimizer": ADAM})
    return TsmStep(latent(2, block_out_channels=[4, 8]), latent(1), Latents(), settings, Draws(seed))


def latent_dm_step(seed: int = 0, **changes: Any) -> DmStep:
    settings = config.Dm.model_validate(STAGE | changes)
    return DmStep(latent(2), latent(1), latent(3), texts(5), settings, Draws(seed))


def latent_adm_step(seed: int = 0, **changes: Any) -> AdmStep:
    settings = config.Adm.model_validate(STAGE | {"discriminator": ADAM, "generator_weight": 0.1} | changes)
    fake_score = latent(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = Discriminator(*fake_score.features_shape)
    return AdmStep(
        latent(2),
        latent(1),
        fake_score,
        texts(5),
        settings,
        Draws(seed),
        data=Latents(),
        real=torch.tensor([0, 2, 3, 7, 8]),
        discriminator=discriminator,
        average=latent(4),
    )
