"""The images that a bundle is judged by: balanced conditions, noise tied to the image's index."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from msd.bundle.bundle import Bundle
from msd.data.archive import LabelledImages, to_uint8
from msd.draws import noise_of_images
from msd.errors import ConfigError
from msd.training.engine import Progress


def conditions_of_images(first: int, count: int, num_conditions: int) -> torch.Tensor:
    """Conditions in exact balance: image i is asked for class i mod num_conditions. (count,) int64."""
    return torch.arange(first, first + count) % num_conditions


def check_belongs(bundle: Bundle, data: LabelledImages) -> None:
    """Check that a bundle draws images and classes of the data's shape and number.

    Raises:
        ConfigError: it does not.
    """
    classes = bundle.num_classes
    if (bundle.image_shape, classes) != (data.image_shape, data.num_classes):
        raise ConfigError(
            "The networks of a variant and the data do not belong together.",
            where=str(bundle.manifest.path),
            why=f"networks: {bundle.image_shape}, {classes} classes; data: {data.image_shape}, {data.num_classes}",
        )


def sample(
    bundle: Bundle,
    images: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    progress: Progress,
    student: int | None = None,
) -> NDArray[np.uint8]:
    """Draw images 0 … images − 1 of a bundle. (images, C, H, W) uint8.

    Args:
        student: who draws all of them, also those of classes it does not own; None: each class's owner.
    """
    bundle.to(device)
    batches = []
    for first in range(0, images, batch_size):
        count = min(batch_size, images - first)
        noise = noise_of_images(seed, first, count, bundle.image_shape).to(device)
        cond = conditions_of_images(first, count, bundle.num_classes).to(device)
        drawn = bundle.generate(noise, cond) if student is None else bundle.generate_by(student, noise, cond)
        batches.append(to_uint8(drawn).cpu().numpy())
        progress(first + count, images, {})
    return np.concatenate(batches)
