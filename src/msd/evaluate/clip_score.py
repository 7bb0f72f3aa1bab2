"""CLIP score: how well images fit their captions, by open_clip, which is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd.config import ClipScore
from msd.data.images import image_of
from msd.errors import DownloadError, MissingFileError


def open_clip_model(settings: ClipScore, device: torch.device) -> Callable[[NDArray[np.uint8], list[str]], float]:
    """A function of images (B, 3, H, W) uint8 and their captions: the sum of 100 · max(cosine, 0) over them.

    Raises:
        MissingFileError: open_clip is not installed.
        DownloadError: its weights cannot be had.
    """
    try:
        import open_clip
    except ImportError as e:
        raise MissingFileError(
            "The CLIP score needs open_clip, which is not installed.",
            where="evaluation.protocol.clip",
            why=str(e),
            todo="pip install 'msd[clip]' (or open_clip_torch), or set `clip: null`.",
        ) from None
    try:
        net, _, transform = open_clip.create_model_and_transforms(settings.model, settings.pretrained, device=device)
    except Exception as e:  # of its hub's transport, whose classes change
        raise DownloadError(
            "The weights for the CLIP score cannot be had.",
            where=f"{settings.model}, {settings.pretrained}",
            why=str(e).split("\n")[0],
            todo="Put the file somewhere and set protocol.clip.pretrained to its path.",
        ) from None
    net.eval()
    tokenizer: Any = open_clip.get_tokenizer(settings.model)

    @torch.no_grad()
    def total(images: NDArray[np.uint8], captions: list[str]) -> float:
        pictures = torch.stack([transform(image_of(image)) for image in images]).to(device)
        seen = net.encode_image(pictures, normalize=True)
        said = net.encode_text(tokenizer(captions).to(device), normalize=True)
        return float(100 * (seen * said).sum(dim=1).clamp(min=0).double().sum())

    return total
