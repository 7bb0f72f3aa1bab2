"""Latents: the autoencoder around a text-conditional denoiser, and archives of what it makes of images."""

from collections.abc import Mapping
from typing import Any

TINY = "tiny_vae"  # the folder of a tiny decoder, beside the autoencoder's ``vae``


def factor_of(config: Mapping[str, Any]) -> int:
    """How many pixels of a side one latent stands for, by an autoencoder's configuration."""
    factor: int = 2 ** (len(config["block_out_channels"]) - 1)
    return factor
