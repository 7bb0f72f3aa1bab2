"""What ``mlflow.pyfunc`` loads a bundle with. Knows nothing of MLflow but the shape of what it calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd.bundle.text import open_bundle
from msd.data.archive import to_uint8
from msd.draws import noise_of_images


class Drawer:
    """Draws images from a bundle, on the CPU.

    Args:
        folder: of the bundle.

    Raises:
        MissingFileError, DamagedFileError: see ``Bundle``.
    """

    def __init__(self, folder: str) -> None:
        self.bundle = open_bundle(folder)

    def predict(self, conditions: NDArray[np.int64], params: dict[str, Any] | None = None) -> NDArray[np.uint8]:
        """One image for each condition, by the student that owns it; the same as ``msd sample`` draws.

        Args:
            conditions: class ids (N,).
            params: ``seed`` of the noise, 0 if it is missing; image i starts from the noise (seed, i).

        Returns:
            Images (N, C, H, W).

        Raises:
            ConfigError: a class that does not exist.
        """
        cond = torch.tensor(conditions)
        noise = noise_of_images((params or {}).get("seed", 0), 0, len(cond), self.bundle.noise_shape)
        return to_uint8(self.bundle.generate(noise, cond)).numpy()


def _load_pyfunc(path: str) -> Drawer:
    """The name that MLflow calls, with the model's folder, which is a bundle's."""
    return Drawer(path)
