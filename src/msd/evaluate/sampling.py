"""The images that a bundle is judged by: balanced conditions, noise tied to the image's index."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from msd.bundle.bundle import Bundle
from msd.data.archive import to_uint8
from msd.draws import noise_of_images
from msd.training.engine import Progress


def conditions_of_images(first: int, count: int, num_conditions: int) -> torch.Tensor:
    """Conditions in exact balance: image i is asked for class i mod num_conditions. (count,) int64."""
    return torch.arange(first, first + count) % num_conditions


def sample(
    bundle: Bundle, images: int, batch_size: int, seed: int, device: torch.device, progress: Progress
) -> NDArray[np.uint8]:
    """Draw images 0 … images − 1 of a bundle. (images, C, H, W) uint8."""
    bundle.to(device)
    batches = []
    for first in range(0, images, batch_size):
        count = min(batch_size, images - first)
        noise = noise_of_images(seed, first, count, bundle.image_shape).to(device)
        cond = conditions_of_images(first, count, bundle.num_classes).to(device)
        batches.append(to_uint8(bundle.generate(noise, cond)).cpu().numpy())
        progress(first + count, images, {})
    return np.concatenate(batches)
