"""A whole Stable Diffusion in miniature, in the layout of a diffusers folder, of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny_latent import LATENT_SHAPE, UNET, WIDTH

from msd.store import write_json
from msd.text.tiny import make_tiny_encoder

CAPTIONS = ["A dog on a beach.", "Two red motor bikes parked next to each other", "A cat next to a dog"] * 3
LENGTH = 12
SCHEDULER: dict[str, Any] = {  # that of Stable Diffusion v1.5, which does not say what it predicts
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def make_unet(**changes: Any) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return UNet2DConditionModel(**(UNET | {"sample_size": LATENT_SHAPE[-1]} | changes)).eval()


def make_folder(folder: Path) -> Path:
    """Write all parts; the VAE's pictures have twice the latents' side."""
    make_tiny_encoder(CAPTIONS, folder, vocabulary=600, length=LENGTH, width=WIDTH, layers=1, seed=3)
    make_unet().save_pretrained(folder / "unet")
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vae = AutoencoderKL(
            latent_channels=LATENT_SHAPE[0],
            block_out_channels=[8, 8],
            norm_num_groups=4,
            sample_size=2 * LATENT_SHAPE[-1],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
        )
    vae.save_pretrained(folder / "vae")
    return folder
