"""diffusers' AutoencoderKL between images and latents, frozen. Knows no denoiser and trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from msd.config.text import TinyAutoencoder
from msd.errors import DamagedFileError, MissingFileError
from msd.latent import factor_of

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # of an autoencoder's folder


class Autoencoder:
    """Images (B, C, H, W) in [-1, 1] ↔ latents (B, c, h, w) of about unit variance.

    Args:
        net: with the factor that scales its latents in its configuration.
        device: where it computes.
    """

    def __init__(self, net: AutoencoderKL, device: torch.device | str = "cpu") -> None:
        nn.Module.to(net, device)  # diffusers' own has a signature that no checker understands
        self.net = net.eval().requires_grad_(False)
        self.device = torch.device(device)
        config: Any = net.config
        self.config = config
        self.scale, self.shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The mean of the posterior, scaled; nothing is drawn."""
        return (self.net.encode(images).latent_dist.mode() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, which may leave [-1, 1] a little."""
        return self.net.decode(latents / self.scale + self.shift).sample

    @property
    def factor(self) -> int:
        """How many pixels of a side one latent stands for."""
        return factor_of(self.config)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of an image's (C, H, W) latents."""
        _, height, width = image_shape
        return self.config.latent_channels, height // self.factor, width // self.factor


def build_autoencoder(settings: TinyAutoencoder, channels: int) -> AutoencoderKL:
    """A freshly initialised one for images of ``channels`` channels; its weights are a function of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return AutoencoderKL(**architecture(settings, channels))


def architecture(settings: TinyAutoencoder, channels: int) -> dict[str, Any]:
    """Arguments of AutoencoderKL."""
    levels = len(settings.channels)
    return {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(settings.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 1,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": settings.groups,
        "mid_block_add_attention": False,
    }


def open_autoencoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder in the folder ``vae/`` of a diffusers pipeline; safetensors only, nothing is downloaded.

    Raises:
        MissingFileError: it is not there.
        DamagedFileError: it cannot be read.
    """
    return Autoencoder(read_model(AutoencoderKL, folder / "vae"), device)


def read_model(kind: Any, folder: Path) -> Any:
    """The autoencoder of a class of diffusers in a folder of its own.

    Raises:
        MissingFileError, DamagedFileError: as ``open_autoencoder``.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise MissingFileError("An autoencoder lacks a file.", where=str(folder / name))
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        why = str(e).split("\n")[0]
        raise DamagedFileError("An autoencoder cannot be read.", where=str(folder), why=why) from None
