"""Latents of captioned images, computed once: shards of float16 and a manifest; and what training reads of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msd import store
from msd.data.archive import LabelledImages
from msd.errors import DataError
from msd.shards import Progress, Shards
from msd.text.embeddings import Embeddings

if TYPE_CHECKING:  # it imports diffusers, which takes seconds
    from msd.latent.autoencoder import Autoencoder

SHARD = 4096  # images
BATCH = 64


class LatentSource(Protocol):
    """Where latents come from: an autoencoder and images, or a file that holds them (``msd.latent.lmdb``)."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(c, h, w) of a latent."""

    def __len__(self) -> int: ...

    def latents(self, first: int, number: int) -> NDArray[np.float16]:
        """Latents (number, c, h, w) as ``Autoencoder.encode`` gives them."""

    def where(self, i: int) -> str:
        """Latent i, for messages."""


class EncodedImages:
    """The latents of images, encoded when they are asked for."""

    def __init__(self, images: LabelledImages, autoencoder: Autoencoder) -> None:
        self._images, self._autoencoder = images, autoencoder

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self._autoencoder.latent_shape(self._images.image_shape)

    def __len__(self) -> int:
        return len(self._images)

    def latents(self, first: int, number: int) -> NDArray[np.float16]:
        parts = []
        for indices in torch.arange(first, first + number).split(BATCH):
            x, _ = self._images.batch(indices)
            parts.append(self._autoencoder.encode(x.to(self._autoencoder.device)).half().cpu())
        return torch.cat(parts).numpy()

    def where(self, i: int) -> str:
        return f"image {i}"


def write_latents(
    source: LatentSource,
    identity: str,
    out: Path,
    *,
    guard: Callable[[], None] = lambda: None,
    stop: Callable[[], str | None] = lambda: None,
    progress: Progress = lambda *_: None,
) -> Shards:
    """Write all latents (n, c, h, w) float16 of a source, in its order; what is whole is kept. One shard is in memory.

    Args:
        identity: of what decides the latents.
        out: a folder.
        guard, stop, progress: see ``Shards.fill``.

    Raises:
        InterruptedRun: there was a reason to stop.
        DataError: a latent is not finite in float16.
    """
    shards = Shards(out, "latents", ".npy", count=len(source), size=SHARD, identity=identity)

    def write(path: Path, first: int, number: int) -> None:
        latents = source.latents(first, number)
        finite = np.isfinite(latents).all(axis=(1, 2, 3))
        if not finite.all():
            raise DataError("A latent is not finite in float16.", where=source.where(first + int(finite.argmin())))
        store.write_with(path, lambda p: np.save(p, latents), guard)

    shards.fill(write, what="latents are written", guard=guard, stop=stop, progress=progress)
    return shards


class Prompts:
    """The conditions of a part: hidden states (B, L, D) float32 of some of an archive's prompts.

    Args:
        embeddings: of all prompts.
        rows: numbers of those of the part, (P,) int64.
    """

    def __init__(self, embeddings: Embeddings, rows: Tensor) -> None:
        self._embeddings, self._rows = embeddings, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self._embeddings.hidden(self._rows[indices])


class CaptionedLatents:
    """Latents (c, h, w), memory-mapped, each with the hidden states of its caption.

    Args:
        shards: in order.
        captions: number of each image's prompt, (N,) int64; negative: it has none.
        embeddings: of the prompts.
        sha256: digest of the whole set.
    """

    def __init__(
        self, shards: list[NDArray[np.float16]], captions: NDArray[np.int64], embeddings: Embeddings, sha256: str
    ) -> None:
        self._shards, self._captions, self.embeddings, self.sha256 = (
            shards,
            torch.from_numpy(captions),
            embeddings,
            sha256,
        )

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, c, h, w = self._shards[0].shape
        return c, h, w

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, c, h, w) float32 and hidden states (B, L, D) float32 at ``indices`` (B,).

        An image without a caption has the empty prompt's states.
        """
        size = len(self._shards[0])
        rows = [self._shards[i // size][i % size] for i in indices.tolist()]
        captions = self._captions[indices]
        hidden = self.embeddings.hidden(captions.clamp(min=0))
        hidden[captions < 0] = self.embeddings.empty
        return torch.from_numpy(np.stack(rows)).float(), hidden

    def some_conditions(self, count: int) -> Tensor:
        """Hidden states of prompts spread over all of them, (count, L, D)."""
        return self.embeddings.hidden(torch.arange(count) * len(self.embeddings) // count)

    def indices_of(self, prompts: list[int]) -> Tensor:
        """Positions of all images with the given captions, ascending, (M,) int64."""
        return torch.isin(self._captions, torch.tensor(prompts)).nonzero().flatten()


def open_latents(manifest: store.Manifest, embeddings: Embeddings) -> CaptionedLatents:
    """The latents of a manifest, verified by sha256.

    Raises:
        MissingFileError, DamagedFileError: a shard is missing or damaged.
    """
    names = [name for name in manifest.body["files"] if name.startswith("latents-")]
    shards = [np.load(manifest.file(name), mmap_mode="r") for name in names]
    sha256 = store.digest([manifest.results["sha256"], embeddings.manifest.body["identity"]])
    return CaptionedLatents(shards, np.load(manifest.file("captions")), embeddings, sha256)
