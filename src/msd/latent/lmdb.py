"""The latents of DMD2's LMDB files (arXiv 2405.14867): those of Stable Diffusion that its GAN loss saw.

``latents_shape`` holds "N c h w" as text, ``latents_<i>_data`` the float16 values of latent i, ``prompts_<i>_data`` its
caption in UTF-8, which ``msd.text`` reads; ``prompts_shape``, "N", may be there. DMD2's generate_vae_latents.py
multiplied the values by the autoencoder's scaling factor (0.18215), and its training takes them as they are; so they
are here, as ``Autoencoder.encode`` gives latents. One difference remains: they were drawn from the posterior, while
``encode`` takes its mean.

The file is opened for each read, since LMDB lets a process open it once only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msd.data.lmdb_rows import open_rows
from msd.errors import DataError


class LmdbLatents:
    """A source of latents for ``msd.latent.archive.write_latents``.

    Attributes:
        path: a folder with ``data.mdb``, or a single file.
        image_shape: (c, h, w) of a latent.

    Raises:
        DamagedFileError: the file cannot be read, or has no readable shape of latents.
        DataError: the shape is not (N, c, h, w), or there are not as many prompts as latents.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_rows(path) as rows:
            shape = rows.shape("latents")
            if len(shape) != 4 or 0 in shape:
                raise DataError("An LMDB file has no latents.", where=f"{path}: latents_shape", why=f"it is {shape}")
            if rows.has("prompts") and rows.shape("prompts")[0] != shape[0]:
                raise DataError("There are not as many prompts as latents.", where=str(path))
        self._count, self.image_shape = shape[0], shape[1:]

    def __len__(self) -> int:
        return self._count

    def latents(self, first: int, number: int) -> NDArray[np.float16]:
        """Latents (number, c, h, w) from number ``first`` on.

        Raises:
            DamagedFileError: one of them is missing, or has not so many values.
        """
        latents = np.empty((number, *self.image_shape), np.float16)
        with open_rows(self.path) as rows:
            for i in range(number):
                latents[i] = rows.row("latents", first + i, np.float16, self.image_shape)
        return latents

    def where(self, i: int) -> str:
        return f"{self.path}: latents_{i}_data"
