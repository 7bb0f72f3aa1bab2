"""The architectures of EDM's published teachers (arXiv 2206.00364, table 7), for plans made before a download."""

from __future__ import annotations

from typing import Any

from msd.config import Network
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
