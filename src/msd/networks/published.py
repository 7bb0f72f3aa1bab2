"""The architectures of published teachers, for plans made before a download: EDM's (arXiv 2206.00364, table 7), and
Stable Diffusion v1.5's (its unet/config.json)."""

from __future__ import annotations

from typing import Any

from msd.config import Network, TextNetwork
from msd.registry import KnownTeacher

ADM = {
    "architecture": "adm",
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
SONG = {"architecture": "song", "model_channels": 128, "num_blocks": 4, "attn_resolutions": [16], "augment_dim": 9}
NCSNPP = {"embedding": "fourier", "noise_channel_mult": 2, "encoder": "residual", "taps": [1, 3, 3, 1]}
SD15 = {
    "architecture": "unet2d",
    "unet": {
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
}
LATENT_CHANNELS, LATENT_FACTOR = 4, 8  # of Stable Diffusion's VAE


def published_text_network(teacher: KnownTeacher) -> tuple[TextNetwork, tuple[int, int, int]]:
    """Architecture and latent shape (C, h, w) of a known teacher that is conditioned on text."""
    side = teacher.resolution // LATENT_FACTOR
    return TextNetwork.model_validate(SD15), (LATENT_CHANNELS, side, side)


def published_network(teacher: KnownTeacher) -> tuple[Network, tuple[int, int, int], int]:
    """Architecture, image shape (C, H, W) and number of classes of a known teacher of pixels."""
    settings: dict[str, Any]
    if teacher.architecture == "ADM":
        settings = ADM
    else:
        settings = SONG | {"channel_mult": [2, 2, 2] if teacher.resolution == 32 else [1, 2, 2, 2]}
        if teacher.architecture == "NCSN++":
            settings = settings | {"song": NCSNPP}
    shape = (3, teacher.resolution, teacher.resolution)
    return Network.model_validate(settings), shape, teacher.classes or 0
