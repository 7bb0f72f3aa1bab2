"""A bundle of text to image: students, router, text encoder and autoencoder, able to draw what a prompt says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msd.bundle.bundle import Bundle
from msd.bundle.write import PROMPTS
from msd.errors import ConfigError
from msd.latent import TINY
from msd.partition.text_router import TextRouter
from msd.store import Manifest, read_json
from msd.text.encoder import Encoded, TextEncoder, open_encoder

if TYPE_CHECKING:  # it imports diffusers, which takes seconds
    from msd.latent.autoencoder import Autoencoder
    from msd.latent.tiny_decoder import TinyDecoder

COMPONENTS = "components"  # the folder inside a bundle's; its files carry the name in front of theirs


class TextBundle(Bundle):
    """As ``Bundle``; its conditions by number are the prompts that its experiment was measured with.

    Attributes:
        prompts: those.
    """

    decoder = "AutoencoderKL"

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.folder, self.device = Path(folder), torch.device("cpu")
        for name in self.manifest.body["files"]:
            if name.startswith(f"{COMPONENTS}/"):
                self.manifest.file(name)  # verified
        self.prompts: list[str] = read_json(self.manifest.file(PROMPTS))
        self._last: tuple[list[int], Encoded] | None = None

    @cached_property
    def encoder(self) -> TextEncoder:
        return open_encoder(self.folder / COMPONENTS, self.device, self.manifest.results["pooling"])

    @cached_property
    def autoencoder(self) -> Autoencoder:
        from msd.latent.autoencoder import open_autoencoder

        return open_autoencoder(self.folder / COMPONENTS, self.device)

    @cached_property
    def _text_router(self) -> TextRouter:
        return TextRouter.load(self.folder)

    @cached_property
    def tiny_decoder(self) -> TinyDecoder:
        from msd.latent.tiny_decoder import open_tiny_decoder

        components = self.folder / COMPONENTS
        return open_tiny_decoder(components / TINY, components / "vae", self.device)

    @property
    def num_classes(self) -> int:
        return len(self.prompts)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, height, width = self.noise_shape
        factor = self.autoencoder.factor
        return self.autoencoder.config.out_channels, height * factor, width * factor

    @property
    def around(self) -> list[nn.Module]:
        return [self.autoencoder.net]

    def to(self, device: torch.device) -> TextBundle:
        """Move the networks; text encoder and autoencoder are opened there."""
        super().to(device)
        self.device, self._last = device, None
        for name in ("encoder", "autoencoder", "tiny_decoder"):
            self.__dict__.pop(name, None)
        return self

    def decode(self, drawn: Tensor) -> Tensor:
        return self.autoencoder.decode(drawn)

    def prompts_of(self, cond: Tensor) -> list[str]:
        return [self.prompts[i] for i in cond.tolist()]

    @property
    def has_tiny_decoder(self) -> bool:
        return any(name.startswith(f"{COMPONENTS}/{TINY}/") for name in self.manifest.body["files"])

    def decoding(self, tiny: bool = False) -> Callable[[Tensor], Tensor]:
        return self.tiny_decoder.decode if tiny and self.has_tiny_decoder else super().decoding(tiny)

    def conditions(self, cond: Tensor) -> Tensor:
        return self._encoded(cond).hidden

    def owners(self, cond: Tensor) -> Tensor:
        if len(self.networks) == 1 or "parts" in self.manifest.results:
            return self.router(cond)
        encoded = self._encoded(cond)
        return self._owners(self.prompts_of(cond), encoded).to(cond.device)

    def _encoded(self, cond: Tensor) -> Encoded:
        """Of known prompts, by number (B,). Those of the last call are kept: the same batch is drawn several times.

        Raises:
            ConfigError: there is no such prompt.
        """
        numbers = cond.tolist()
        if not all(0 <= i < self.num_classes for i in numbers):
            raise ConfigError(
                f"Prompts are known by the numbers 0…{self.num_classes - 1}.", why=f"given: {numbers[:5]}"
            )
        if self._last is None or self._last[0] != numbers:
            self._last = numbers, self.encoder.encode(self.prompts_of(cond))
        return self._last[1]

    @torch.no_grad()
    def draw_prompts(self, prompts: list[str], noise: Tensor, tiny: bool = False) -> tuple[Tensor, list[int]]:
        """Images (B, C, H, W) of any prompts, each by its owner, from noise (B, c, h, w); and the owners' numbers.

        Args:
            tiny: decoded by the tiny decoder.

        Raises:
            ConfigError: the partition says nothing about prompts that were not in it, or there is no tiny decoder.
        """
        decode = self.decoding(tiny)
        encoded = self.encoder.encode(prompts)
        owners = self._owners(prompts, encoded)
        return decode(self._routed(noise, encoded.hidden, owners)), owners.tolist()

    def _owners(self, prompts: list[str], encoded: Encoded) -> Tensor:
        if len(self.networks) == 1:
            return torch.zeros(len(prompts), dtype=torch.int64)
        if "router.json" not in self.manifest.body["files"]:
            raise ConfigError(
                "No rule says who owns a prompt that these students were not trained with.",
                where=str(self.manifest.path),
                todo="Train with a partition of kind quadrants, text-kmeans or hash.",
            )
        return torch.from_numpy(self._text_router(encoded.pooled.float().cpu().numpy(), prompts))


def open_bundle(folder: Path | str) -> Bundle:
    """The bundle in a folder, of classes or of text.

    Raises:
        MissingFileError, DamagedFileError: the folder is incomplete or a file is not the recorded one.
    """
    manifest = Manifest.read(Path(folder) / "manifest.json")
    return TextBundle(folder) if PROMPTS in manifest.body["files"] else Bundle(folder)
