"""A bundle: K students, their partition and one manifest in a folder, able to draw images on its own.

The teacher's own row of the table is a bundle too, with one network and a sampler of many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msd.diffusion.samplers import NoiseSource
from msd.errors import ConfigError
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
        decoder: what makes images of what the networks draw; None: nothing, they draw images.
    """

    decoder: str | None = None

    def __init__(self, folder: Path | str) -> None:
        self.manifest = Manifest.read(Path(folder) / "manifest.json")
        results = self.manifest.results
        self.sampler: dict[str, Any] | None = self.manifest.settings.get("sampler")
        self.networks: list[Backbone] = [
            load_network(self.manifest.file(f"student-{k}" if self.sampler is None else "teacher"))
            for k in range(results["students"])
        ]
        self.nfe: int = results["nfe"]

    @cached_property
    def router(self) -> ClassRouter:
        """Which student owns which condition, by number."""
        known = [list(range(self.num_classes))] if len(self.networks) == 1 else self.manifest.results["parts"]
        return ClassRouter(known)

    def owners(self, cond: Tensor) -> Tensor:
        """Conditions by number (B,) int64 → students (B,) int64.

        Raises:
            ConfigError: there is no such condition.
        """
        return self.router(cond)

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
        return self.decode(self.draw(noise, cond, churn))

    @torch.no_grad()
    def generate_by(self, student: int, noise: Tensor, cond: Tensor, churn: NoiseSource | None = None) -> Tensor:
        """The same by one network, whether it owns the conditions or not."""
        return self.decode(self._draw(student, noise, self.conditions(cond), churn))

    @torch.no_grad()
    def draw(self, noise: Tensor, cond: Tensor, churn: NoiseSource | None = None) -> Tensor:
        """What the networks make, before it is decoded, of the noise's shape."""
        return self._routed(noise, self.conditions(cond), self.owners(cond), churn)

    @property
    def around(self) -> list[nn.Module]:
        """Frozen networks beside the students that drawing needs."""
        return []

    def decode(self, drawn: Tensor) -> Tensor:
        """What the networks make → images."""
        return drawn

    @property
    def has_tiny_decoder(self) -> bool:
        """Whether it carries a second, faster decoder."""
        return False

    def decoding(self, tiny: bool = False) -> Callable[[Tensor], Tensor]:
        """What makes images of what ``draw`` gives: ``decode``, or the tiny decoder, sooner and a little other.

        Raises:
            ConfigError: a tiny decoder is asked for, and the bundle has none.
        """
        if not tiny:
            return self.decode
        raise ConfigError(
            "These students have no tiny decoder.",
            where=str(self.manifest.path),
            todo="Name one in `text.tiny_decoder`, for an experiment of text to image, and make the bundle again.",
        )

    def conditions(self, cond: Tensor) -> Tensor:
        """Conditions by number (B,) → what the networks take (B, …)."""
        return cond

    def _routed(self, noise: Tensor, conditions: Tensor, owner: Tensor, churn: NoiseSource | None = None) -> Tensor:
        drawn = torch.empty_like(noise)
        for k in owner.unique().tolist():
            mine = owner == k
            drawn[mine] = self._draw(k, noise[mine], conditions[mine], churn)
        return drawn

    def _draw(self, student: int, noise: Tensor, conditions: Tensor, churn: NoiseSource | None) -> Tensor:
        net = self.networks[student]
        if self.sampler is None:
            return net.generate(noise, conditions)
        return sample_teacher(net, noise, conditions, self.sampler, churn)  # one network, so the whole batch
