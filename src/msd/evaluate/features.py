"""Networks whose features distances are measured in: our classifiers, Inception-v3 as FID means it, TorchScript files.

Every extractor takes uint8 images and brings them to the size its network wants. Computes no metric.
torch-fidelity is imported where it is used: it takes about as long as torch.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.resize import make_resizer
from numpy.typing import NDArray
from torch import Tensor, nn

from msd.errors import DamagedFileError, DataError
from msd.evaluate.classifier import load_classifier

INCEPTION_SIZE = 299
Prepare = Callable[[Tensor], Tensor]


class Extractor:
    """uint8 images → features.

    Args:
        net: what ``prepare`` makes → (B, D).
        prepare: (B, C, H, W) uint8 on the network's device → the network's input.
        device: where the network runs.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], prepare: Prepare, device: torch.device) -> None:
        self.net, self.prepare, self.device = net, prepare, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 → features (B, D) float32 on the CPU."""
        # TF32 is on by default for convolutions, and shifts a distance in its third digit
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.net(self.prepare(images.to(self.device))).float().cpu()

    def all_of(self, batches: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Features (N, D) of images that come in batches (B, C, H, W)."""
        return np.concatenate([self(torch.from_numpy(np.array(batch))).numpy() for batch in batches])


def open_extractor(path: Path, source: Mapping[str, Any], resize: str, device: torch.device) -> Extractor:
    """The extractor of a weights file.

    Args:
        path: the file, verified by the caller.
        source: a ``config.FeatureSource`` as plain values; says what the file is.
        resize: ``tensorflow`` or ``clean``; classifiers take images as they are.

    Raises:
        DamagedFileError: the file cannot be read, or holds another network.
    """
    if source["source"] == "inception":
        return Extractor(_inception(path).to(device), _normalised(INCEPTION_SIZE, resize, 128.0, 128.0), device)
    if source["source"] == "torchscript":
        mean, std = (255 * torch.tensor(source[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
        return Extractor(_torchscript(path).to(device), _normalised(source["size"], resize, mean, std), device)
    net = load_classifier(path).to(device)
    return Extractor(lambda x: net.of_uint8(x)[0], lambda images: _of_channels(images, net.description), device)


def _of_channels(images: Tensor, description: Mapping[str, Any]) -> Tensor:
    if list(images.shape[1:]) != description["image_shape"]:
        raise DataError(
            "Images have not the shape that the feature network knows.",
            why=f"{list(images.shape[1:])}, expected {description['image_shape']} (channels, height, width)",
        )
    return images


def _normalised(size: int, resize: str, mean: float | Tensor, std: float | Tensor) -> Prepare:
    """Colour, the network's size, and its range; resized images are not rounded to whole numbers."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    bicubic = make_resizer("PIL", False, "bicubic", (size, size))

    def prepare(images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        if resize == "clean":
            arrays = [bicubic(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
            x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(images.device)
        else:
            x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(size, size), align_corners=False)
        return (x - mean) / std

    return prepare


def _inception(path: Path) -> nn.Module:
    """The network up to the pooled 2048 features; input (B, 3, 299, 299) in −1…1."""
    if _is_torchscript(path):
        script = _torchscript(path)
        layers = next((m for name, m in script.named_modules() if name.split(".")[-1] == "layers"), None)
        if layers is None:
            raise _not_this(path, "it has no module `layers`, as the published TorchScript files of Inception-v3 do")
        return nn.Sequential(layers, nn.Flatten())
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = _tensors(path)
    width = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
    assert width == INCEPTION_SIZE
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "weights.pth"  # the library unpickles whatever a file holds; of this one we know
        torch.save(state, safe)
        try:
            net = FeatureExtractorInceptionV3("msd-inception", ["2048"], feature_extractor_weights_path=str(safe))
        except RuntimeError as e:
            raise _not_this(path, str(e).split("\n")[0]) from None
    layers = [module for name, module in net.named_children() if name != "fc"]  # they are in the order of their use
    return nn.Sequential(*layers, nn.Flatten()).eval().requires_grad_(False)


def _torchscript(path: Path) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, EOFError) as e:
        raise _not_this(path, str(e).split("\n")[0]) from None


def _is_torchscript(path: Path) -> bool:
    """Both kinds are zip files; TorchScript ones hold code."""
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever the restricted reader makes of other bytes
        raise _not_this(path, str(e).split("\n")[0]) from None
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise _not_this(path, "it holds something else than named tensors")
    return state


def _not_this(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError("A file is not the feature network that it should be.", where=str(path), why=why)
