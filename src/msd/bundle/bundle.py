"""A bundle: K students, their partition and one manifest in a folder, able to draw images on its own.

The teacher's own row of the table is a bundle too, with one network and a sampler of many steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msd.diffusion.samplers import NoiseSource
from msd.networks import Backbone, load_network, sample_teacher
from msd.partition.router import ClassRouter
from msd.store import Manifest


class Bundle:
    """Networks and router read from a bundle's folder.

    Args:
        folder: written by ``write_bundle``.

    Raises:
        MissingFileError, DamagedFileError: the folder is incomplete or a file is not the recorded one.

    Attributes:
        manifest: of the bundle.
        networks: the students, or the teacher alone.
        nfe: network evaluations per image.
    """

    def __init__(self, folder: Path | str) -> None:
        self.manifest = Manifest.read(Path(folder) / "manifest.json")
        results = self.manifest.results
        self.sampler: dict[str, Any] | None = self.manifest.settings.get("sampler")
        self.networks: list[Backbone] = [
            load_network(self.manifest.file(f"student-{k}" if self.sampler is None else "teacher"))
            for k in range(results["students"])
        ]
        self.nfe: int = results["nfe"]
        classes = self.num_classes
        parts = results["parts"] if self.sampler is None else [list(range(classes))]
        self.router = ClassRouter(parts)

    @property
    def num_classes(self) -> int:
        """Conditions that it can be asked for by number."""
        return self.networks[0].num_classes

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise that an image begins with."""
        return self.networks[0].image_shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.noise_shape

    def to(self, device: torch.device) -> Bundle:
        """Move the networks."""
        for net in self.networks:
            net.to(device)
        return self

    @torch.no_grad()
    def generate(self, noise: Tensor, cond: Tensor, churn: NoiseSource | None = None) -> Tensor:
        """Unit noise (B, …) and conditions (B,) → images (B, C, H, W), each by the owner of its condition.

        Args:
            churn: for a teacher with a stochastic sampler, see ``sample_teacher``.
        """
        images = noise.new_empty(len(noise), *self.image_shape)
        owner = self.router(cond)
        for k in owner.unique().tolist():
            mine = owner == k
            images[mine] = self.generate_by(k, noise[mine], cond[mine], churn)
        return images

    @torch.no_grad()
    def generate_by(self, student: int, noise: Tensor, cond: Tensor, churn: NoiseSource | None = None) -> Tensor:
        """The same by one network, whether it owns the conditions or not."""
        net = self.networks[student]
        if self.sampler is None:
            return net.generate(noise, cond)
        return sample_teacher(net, noise, cond, self.sampler, churn)  # one network, so the whole batch
