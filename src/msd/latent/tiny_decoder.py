"""The decoder of a tiny autoencoder, diffusers' AutoencoderTiny (TAESD): pictures sooner than by the full one, and a
little other. For looking and for latency; nothing is trained on its pictures, and no distance is measured of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from msd.errors import ConfigError
from msd.latent import factor_of
from msd.latent.autoencoder import read_model
from msd.store import read_json


class TinyDecoder:
    """Latents (B, c, h, w) of about unit variance, as the denoiser makes them, → images (B, C, H, W) in about [-1, 1].

    TAESD was made for latents that are scaled already: nothing is divided by the full autoencoder's factor.

    Args:
        net: only its decoder is kept.
        device: where it computes.
    """

    def __init__(self, net: AutoencoderTiny, device: torch.device | str = "cpu") -> None:
        self.net: nn.Module = net.decoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.net(latents)
        return images


def open_tiny_decoder(folder: Path, autoencoder: Path, device: torch.device | str = "cpu") -> TinyDecoder:
    """The tiny decoder in a folder; safetensors only, nothing is downloaded.

    Args:
        folder: with config.json and diffusion_pytorch_model.safetensors.
        autoencoder: the folder ``vae/`` of the full one, of which the configuration alone is read.
        device: where it computes.

    Raises:
        MissingFileError, DamagedFileError: as ``open_autoencoder``.
        ConfigError: it takes other latents than the full one, or makes other images.
    """
    net = read_model(AutoencoderTiny, folder)
    tiny, full = net.config, read_json(autoencoder / "config.json")
    levels = len(tiny.decoder_block_out_channels)
    compared = {  # found, expected
        "latent channels": (tiny.latent_channels, full["latent_channels"]),
        "channels of an image": (tiny.out_channels, full["out_channels"]),
        "pixels of a latent's side": (tiny.upsampling_scaling_factor ** (levels - 1), factor_of(full)),
        "scaling factor": (tiny.scaling_factor, 1),
        "shift factor": (tiny.shift_factor, 0),
    }
    odd = [f"{name}: {found} for {expected}" for name, (found, expected) in compared.items() if found != expected]
    if odd:
        raise ConfigError(
            "A tiny decoder does not belong to the autoencoder.",
            where=str(folder),
            why="; ".join(odd),
            todo="Take the one that was made for these latents: TAESD for Stable Diffusion 1 and 2.",
        )
    return TinyDecoder(net, device)
