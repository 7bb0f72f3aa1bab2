"""A protocol put to use: its digest, its feature networks, and the real images that it compares with.

Features of real images are computed once and cached by what they depend on. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from msd.config import Protocol, StatisticsSource
from msd.data.images import Shaping, image_of
from msd.download import fetch
from msd.errors import DamagedFileError
from msd.evaluate.features import Extractor, open_extractor
from msd.evaluate.metrics import Features, score, spread, statistics_of
from msd.evaluate.statistics import Moments, Statistics, cached_statistics
from msd.store import digest, verify_sha256, write_with

BATCH = 100  # images at once, of real ones


@dataclass(frozen=True)
class Network:
    """A feature network that is at hand.

    Attributes:
        path, sha256: of its weights.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class RealImages:
    """What a protocol compares with, in one feature space.

    Attributes:
        features: (M, D) of those that neighbours are looked for in; None where there are statistics alone.
        statistics: of the distance.
    """

    features: Features | None
    statistics: Statistics


@dataclass(frozen=True)
class Reference:
    """What a protocol compares with, in every space.

    Attributes:
        images: how many; 0 if it does not say.
        sha256: of the files, where these are not the experiment's data.
    """

    real: Mapping[str, RealImages]
    images: int
    sha256: str | None = None


class Ruler:
    """A protocol with its networks, ready to measure.

    Args:
        protocol: the recipe.
        networks: name of each feature space → its network.
        device: where the networks run.
        cache: folder that keeps features of real images; None: nothing is kept.
    """

    def __init__(
        self, protocol: Protocol, networks: Mapping[str, Network], device: torch.device, cache: Path | None = None
    ) -> None:
        self.protocol, self.networks, self.cache = protocol, networks, cache
        self.extractors: dict[str, Extractor] = {
            name: open_extractor(networks[name].path, source.model_dump(mode="json"), protocol.resize, device)
            for name, source in protocol.spaces.items()
        }

    def of_half(self, images: NDArray[np.uint8], sha256: str) -> dict[str, RealImages]:
        """Real images (N, C, H, W) of the experiment's own data, in every space.

        Args:
            sha256: of these very images; decides what a cache holds.
        """
        return {name: self._real(name, images, sha256) for name in self.extractors}

    @property
    def published(self) -> Statistics | None:
        """Of the protocol's own distance, where it names them."""
        return _published(self.protocol.reference.statistics)

    def key(self, name: str, sha256: str) -> dict[str, str | int]:
        """What features of images with this digest depend on, in a space."""
        return {
            "images": sha256,
            "features": self.networks[name].sha256,
            "source": digest(self.protocol.spaces[name].model_dump(mode="json", exclude={"path"})),
            "resize": self.protocol.resize,
        }

    def _real(self, name: str, images: NDArray[np.uint8], sha256: str) -> RealImages:
        chosen, resolution = spread(len(images), self.protocol.neighbour_images), self.protocol.resolution
        key = self.key(name, sha256)
        if resolution not in (None, images.shape[-1]):
            key["resolution"] = resolution
        features = self.kept(key | {"chosen": len(chosen)}, lambda: self.features(name, images[chosen]))
        if name == self.protocol.name and self.published is not None:
            return RealImages(features, self.published)
        if len(chosen) == len(images):
            return RealImages(features, statistics_of(features))

        def all_moments() -> Moments:
            moments = Moments(features.shape[1])
            for batch in batches(images):
                moments.update(self.features(name, batch))
            return moments

        if self.cache is None:
            moments = all_moments()
            return RealImages(features, Statistics(moments.mu, moments.sigma))
        return RealImages(features, cached_statistics(self.cache, key, all_moments))

    def features(self, name: str, images: NDArray[np.uint8]) -> Features:
        """Features (N, D) of images (N, C, H, W), brought to the protocol's resolution, in a space."""
        return self.extractors[name].all_of(at_resolution(b, self.protocol.resolution) for b in batches(images))

    def kept(self, key: dict[str, str | int], make: Callable[[], Features]) -> Features:
        """Features by what they depend on: from the cache, or made and put there.

        Raises:
            DamagedFileError: the cache cannot be read.
        """
        if self.cache is None:
            return make()
        path = self.cache / f"{digest(key, 16)}.npy"
        if not path.exists():
            features = make()
            write_with(path, lambda p: np.save(p, features))
        try:
            return np.load(path)
        except (ValueError, EOFError, OSError) as e:
            raise DamagedFileError(
                "Cached features cannot be read.", where=str(path), why=str(e), todo="Delete the file."
            ) from None

    def scores(self, features: Mapping[str, Features], real: Mapping[str, RealImages]) -> dict[str, float]:
        """All metrics of images' features in every space; the protocol's own distance first."""
        found: dict[str, float] = {}
        for name in self.extractors:
            found |= score(features[name], real[name].features, real[name].statistics, self.protocol, name)
        return found

    def record(self, reference: Reference, **digests: str | None) -> dict[str, str | int | None]:
        """What manifests and tables say of a measurement: numbers compare only where all of it is equal.

        Args:
            digests: of a judge and of prompts (``judge_sha256``, ``prompts_sha256``), where there are some.
        """
        (name, *further), clip = self.networks, self.protocol.clip
        return {
            "name": name,
            "protocol": protocol_digest(self.protocol),
            "features_sha256": self.networks[name].sha256,
            **({"second_features_sha256": self.networks[further[0]].sha256} if further else {}),
            **{key: digest for key, digest in digests.items() if digest},
            **({"clip": f"{clip.model}, {clip.pretrained}"} if clip else {}),
            "images": self.protocol.images,
            "blocks": self.protocol.blocks,
            "reference_images": reference.images,
            **({"reference_sha256": reference.sha256} if reference.sha256 else {}),
        }


def protocol_digest(protocol: Protocol) -> str:
    """sha256 of all that a protocol says."""
    return digest(protocol.model_dump(mode="json"))


def summary(blocks: list[dict[str, float]], name: str) -> dict[str, float]:
    """Means over seed blocks; of several also the smallest distance, which EDM's figures are."""
    means = {key: float(np.mean([block[key] for block in blocks])) for key in blocks[0]}
    if len(blocks) == 1:
        return means
    return means | {f"{name}_minimum": min(block[name] for block in blocks)}


def at_resolution(images: NDArray[np.uint8], resolution: int | None) -> NDArray[np.uint8]:
    """Images (B, C, H, W) at a protocol's resolution, as images in files are brought there: by Lanczos."""
    if resolution in (None, images.shape[-1]):
        return images
    shaping = Shaping(resolution=resolution)
    arrays = [np.atleast_3d(np.asarray(shaping(image_of(image)))) for image in images]
    return np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2))


def batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Images a few at a time; memory-mapped ones are read as they come."""
    return (images[first : first + BATCH] for first in range(0, len(images), BATCH))


def _published(source: StatisticsSource | None) -> Statistics | None:
    if source is None:
        return None
    path = Path(source.path) if source.path is not None else fetch(str(source.url), source.sha256)
    if source.sha256 is not None:
        verify_sha256(path, source.sha256)
    return Statistics.load(path)
