"""CLIP score: how well images fit their captions, by open_clip, which is imported only when it is asked for."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from msd.config import ClipScore
from msd.data.images import image_of
from msd.download import cache_folder, shown
from msd.errors import ConfigError, DamagedFileError, DownloadError, MissingFileError, UnsafeFileError
from msd.store import verify_sha256

KEY = "evaluation.protocol.clip"


def open_clip_model(settings: ClipScore, device: torch.device) -> Callable[[NDArray[np.uint8], list[str]], float]:
    """A function of images (B, 1 or 3, H, W) uint8 and their captions: the sum of 100 · max(cosine, 0) over them.

    Captions that are too long for the model are cut.

    Raises:
        MissingFileError: open_clip is not installed, or there is no such file of weights.
        ConfigError: open_clip has no such model.
        DownloadError: its weights cannot be had.
        UnsafeFileError: the weights are a pickle of more than tensors; nothing of it was run.
        DamagedFileError: the file is another one, or holds no weights of this model.
    """
    try:
        import open_clip
    except ImportError as e:
        raise MissingFileError(
            "The CLIP score needs open_clip, which is not installed.",
            where=KEY,
            why=str(e),
            todo="pip install 'msd[clip]' (or open_clip_torch), or set `clip: null`.",
        ) from None
    if settings.model not in open_clip.list_models():
        todo = "Take a name of open_clip.list_models()."
        raise ConfigError(f"open_clip has no model {settings.model!r}.", where=f"{KEY}.model", todo=todo)
    is_file = not open_clip.get_pretrained_cfg(settings.model, settings.pretrained)
    if is_file:
        _check_file(settings)
    hub = str(cache_folder() / "hub")
    try:
        with _silence():
            net, _, transform = open_clip.create_model_and_transforms(
                settings.model, settings.pretrained, device=device, cache_dir=hub, weights_only=True
            )
            tokenizer: Any = open_clip.get_tokenizer(settings.model, cache_dir=hub)
    except Exception as e:  # of torch, of safetensors, of its hub's transport, whose classes change
        _refuse(settings, is_file, e)
    net.eval()

    @torch.no_grad()
    def total(images: NDArray[np.uint8], captions: list[str]) -> float:
        pictures = torch.stack([transform(image_of(image)) for image in images]).to(device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            seen = net.encode_image(pictures, normalize=True)
            said = net.encode_text(tokenizer(captions).to(device), normalize=True)
        return float(100 * (seen * said).sum(dim=1).clamp(min=0).double().sum())

    return total


def _check_file(settings: ClipScore) -> None:
    path = Path(settings.pretrained)
    if not path.is_file():
        raise MissingFileError(
            "The weights for the CLIP score do not exist.",
            where=str(path),
            why=f"it is no file, and no name that open_clip has for weights of {settings.model}",
            todo=f"Correct {KEY}.pretrained; open_clip.list_pretrained() has the names.",
        )
    if settings.sha256 is not None:
        verify_sha256(path, settings.sha256)


@contextmanager
def _silence() -> Iterator[None]:
    """No log lines: open_clip and its hub tell the same failure a dozen times, and the error once."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _refuse(settings: ClipScore, is_file: bool, error: Exception) -> NoReturn:
    """One error of ours for whatever open_clip raised."""
    where = settings.pretrained if is_file else f"{settings.model}, {settings.pretrained}"
    why = shown(" ".join(str(error).split()))[:300]
    if isinstance(error, pickle.UnpicklingError):
        todo = "Take the same weights as safetensors."
        what = "The weights for the CLIP score are no plain tensors; nothing of the file was run."
        raise UnsafeFileError(what, where=where, why=why, todo=todo) from None
    if is_file:
        what = f"The weights for the CLIP score cannot be read as those of {settings.model}."
        raise DamagedFileError(what, where=where, why=why) from None
    raise DownloadError(
        "The weights for the CLIP score cannot be had.",
        where=where,
        why=why,
        todo=f"Check the network, or put the file somewhere and set {KEY}.pretrained to its path.",
    ) from None
