"""The images that a bundle is judged by, and their features: all is a function of a protocol and an image's index.

The work is cut into whole batches of consecutive images. Processes take batches in turn, so every image is drawn in the
same company whatever their number, and images and features are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msd import ranks
from msd.bundle.bundle import Bundle
from msd.config import Protocol
from msd.data.archive import LabelledImages
from msd.draws import Draws, noise_of_images
from msd.errors import ConfigError
from msd.evaluate.classifier import Classifier
from msd.evaluate.features import Extractor
from msd.evaluate.protocol import at_resolution
from msd.training.engine import Progress

Score = Callable[[NDArray[np.uint8], Tensor], float]


@dataclass(frozen=True)
class Eyes:
    """What looks at images.

    Attributes:
        extractors: by the names of their spaces.
        judge: None where conditions have no classes.
        clip: images (B, C, H, W) uint8 and what they were asked for (B,) → the sum of their CLIP scores; None: not
            asked for.
    """

    extractors: Mapping[str, Extractor]
    judge: Classifier | None = None
    clip: Score | None = None


@dataclass(frozen=True)
class Seen:
    """What is kept of consecutive images.

    Attributes:
        first: index of the first image.
        asked, shown: conditions (N,) int64 that they were asked for, and classes that the judge sees; none of these
            without a judge.
        clip: sum of the CLIP scores; 0 where they were not asked for.
        features: name of the feature space → (N, D) float32.
        head: those of the first images that were wanted, uint8.
    """

    first: int
    asked: NDArray[np.int64]
    shown: NDArray[np.int64]
    clip: float
    features: Mapping[str, NDArray[np.float32]]
    head: NDArray[np.uint8]


def conditions_of_images(first: int, count: int, num_conditions: int) -> Tensor:
    """Conditions in exact balance: image i is asked for class i mod num_conditions. (count,) int64."""
    return torch.arange(first, first + count) % num_conditions


def check_belongs(bundle: Bundle, data: LabelledImages, classes_too: bool = True) -> None:
    """Check that a bundle draws images and, where these have some, classes of the data's shape and number.

    Raises:
        ConfigError: it does not.
    """
    classes = bundle.num_classes if classes_too else data.num_classes
    if (bundle.image_shape, classes) != (data.image_shape, data.num_classes):
        raise ConfigError(
            "The networks of a variant and the data do not belong together.",
            where=str(bundle.manifest.path),
            why=f"networks: {bundle.image_shape}, {classes} classes; data: {data.image_shape}, {data.num_classes}",
        )


def asked_of_images(protocol: Protocol, first: int, count: int, num_conditions: int) -> Tensor:
    """The classes that images are asked for, each a function of (protocol, its index). (count,) int64."""
    if protocol.labels == "balanced":
        return conditions_of_images(first, count, num_conditions)
    draws = Draws(protocol.seed)
    return torch.cat([draws.integers("image-label", i, 1, 0, num_conditions) for i in range(first, first + count)])


def quantised(images: Tensor, how: str) -> Tensor:
    """float −1…1 → uint8, truncated as DMD2 does it or by EDM's x·127.5 + 128."""
    scaled = (images + 1) * 127.5 if how == "truncate" else images * 127.5 + 128
    return scaled.clamp(0, 255).to(torch.uint8)


def draw(
    bundle: Bundle, protocol: Protocol, first: int, count: int, device: torch.device, student: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images (count, C, H, W) uint8 on the device, and the classes that they were asked for, on the CPU.

    Args:
        student: who draws all of them, also those of classes it does not own; None: each class's owner.
    """
    draws, indices = Draws(protocol.seed), range(first, first + count)
    noise = noise_of_images(protocol.seed, first, count, bundle.noise_shape).to(device)
    cond = asked_of_images(protocol, first, count, bundle.num_classes)

    def churn(step: int, like: Tensor) -> Tensor:
        return torch.stack([draws.normal(f"churn-{step}", i, bundle.noise_shape) for i in indices]).to(like)

    how = (noise, cond.to(device), churn)
    images = bundle.generate(*how) if student is None else bundle.generate_by(student, *how)
    return quantised(images, protocol.quantisation), cond


def look_at(
    bundle: Bundle,
    protocol: Protocol,
    block: int,
    eyes: Eyes,
    batch_size: int,
    device: torch.device,
    wanted: int,
    progress: Progress,
) -> Seen | None:
    """Draw a block's images, all processes together, and keep what is measured of them.

    Args:
        bundle: on the device.
        batch_size: images drawn at once.
        wanted: how many of the first images to keep.

    Returns:
        All of them on the first process, None on the others.
    """
    origin, parts = block * protocol.images, []
    for number, start in enumerate(range(0, protocol.images, batch_size)):
        if number % ranks.world() != ranks.rank():
            continue
        count = min(batch_size, protocol.images - start)
        images, asked = draw(bundle, protocol, origin + start, count, device)
        head = images[: max(wanted - start, 0)].cpu().numpy()
        shown = shown_classes(images, eyes.judge) if eyes.judge else np.zeros(0, np.int64)
        if protocol.resolution not in (None, images.shape[-1]):
            images = torch.from_numpy(at_resolution(images.cpu().numpy(), protocol.resolution)).to(device)
        clip = eyes.clip(images.cpu().numpy(), asked) if eyes.clip else 0.0
        features = {name: extractor(images).numpy() for name, extractor in eyes.extractors.items()}
        parts.append(Seen(origin + start, asked.numpy(), shown, clip, features, head))
        progress(start + count, protocol.images, {})
    everything = sorted((part for found in ranks.gathered(parts) for part in found), key=lambda part: part.first)
    return _joined(everything) if everything else None


@torch.no_grad()
def shown_classes(images: Tensor, judge: Classifier) -> NDArray[np.int64]:
    """The class that the judge sees in each image, (B,)."""
    return judge.of_uint8(images)[1].argmax(1).cpu().numpy()


def _joined(parts: list[Seen]) -> Seen:
    return Seen(
        first=parts[0].first,
        asked=np.concatenate([part.asked for part in parts]),
        shown=np.concatenate([part.shown for part in parts]),
        clip=sum(part.clip for part in parts),
        features={name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features},
        head=np.concatenate([part.head for part in parts]),
    )
