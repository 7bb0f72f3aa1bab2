"""A protocol: the whole recipe of a metric. Two numbers compare where the digests of their protocols are equal.

Protocols are files (``protocols/``), named by ``evaluation.protocol``; their content is part of what is measured with
them. Nothing here measures.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from msd.config.base import NonNegative, Section, Sha256
from msd.config.sources import ClassifierTrainSource, FileSource, HubSource, UrlSource
from msd.config.training import TeacherSampler

Name: TypeAlias = Annotated[str, Field(pattern=r"^(fd|fid)_[a-z0-9_]+$")]
Triple: TypeAlias = tuple[float, float, float]


class InceptionSource(Section):
    """Inception-v3 with the weights of 2015, which is what FID means."""

    source: Literal["inception"]
    path: str | None = Field(
        None, description="a .pth of torch-fidelity or pytorch-fid, or a TorchScript file; null: download the first"
    )
    sha256: Sha256 | None = Field(None, description="of the file; required with a path")

    @model_validator(mode="after")
    def _path_with_digest(self) -> InceptionSource:
        if (self.path is None) != (self.sha256 is None):
            raise ValueError("path and sha256 belong together")
        return self


class TorchScriptSource(Section):
    """Any other network of features, DINOv2 say, as a TorchScript file: (B, 3, size, size) → (B, D)."""

    source: Literal["torchscript"]
    path: str
    sha256: Sha256
    size: PositiveInt = Field(224, description="pixels of the square that it takes")
    mean: Triple = Field((0.485, 0.456, 0.406), description="of each channel, pixels being in 0…1")
    std: Triple = Field((0.229, 0.224, 0.225), description="of each channel")


FeatureSource: TypeAlias = Annotated[
    FileSource | UrlSource | HubSource | ClassifierTrainSource | InceptionSource | TorchScriptSource,
    Field(discriminator="source"),
]


class Space(Section):
    """A second feature space: a distance of its own name beside the first."""

    name: Name
    features: FeatureSource


class StatisticsSource(Section):
    """Mean and covariance in EDM's layout (``mu``, ``sigma`` in an npz file)."""

    path: str | None = Field(None, description="a file, relative to the repository's root")
    url: str | None = Field(None, pattern="^(https?|file)://", description="or where to fetch it")
    sha256: Sha256 | None = Field(None, description="null: that of the first download on this machine")

    @model_validator(mode="after")
    def _one_place(self) -> StatisticsSource:
        if (self.path is None) == (self.url is None):
            raise ValueError("give a path or a url")
        return self


class Reference(Section):
    """What images are compared with."""

    half: Literal["evaluation", "train"] = Field("evaluation", description="of the experiment's own data")
    images: str | None = Field(
        None, description="other images than the experiment's own: a folder, zip, LMDB or npz file; null: the half"
    )
    statistics: StatisticsSource | None = Field(
        None, description="published statistics for the distance; precision, recall and KID use images all the same"
    )

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves `images` out where it is not used: digests of protocols stay what they were."""
        return {key: value for key, value in dump(self).items() if key != "images" or value is not None}


class Captions(Section):
    """The prompts of a text-to-image protocol, one a line; image i belongs to line i, and so does its noise."""

    path: str
    sha256: Sha256 | None = None


class ClipScore(Section):
    """Mean cosine of images and captions by open_clip, times 100; needs `pip install 'msd[clip]'`."""

    model: str = "ViT-g-14"
    pretrained: str = Field(
        "laion2b_s12b_b42k", min_length=1, description="open_clip's name of the weights, or a path of tensors only"
    )
    sha256: Sha256 | None = Field(None, description="of the file, for a path; null: not checked")


class Protocol(Section):
    """A metric's recipe (docs/metrics.md)."""

    name: Name = Field(description="of the distance; `fid_…` is for Inception-v3, `fd_…` for any other features")
    features: FeatureSource = Field(description="the network in whose features the distance is measured")
    second: Space | None = Field(None, description="null: no second feature space")
    resize: Literal["tensorflow", "clean"] = Field(
        "tensorflow",
        description="to the pixels that Inception or a TorchScript file wants: the FID code's bilinear, or clean-fid's "
        "antialiased bicubic",
    )
    resolution: PositiveInt | None = Field(
        None, description="images in files are cut to their centre square and brought to this side by Lanczos"
    )
    quantisation: Literal["truncate", "round"] = Field(
        "truncate", description="to uint8: (x + 1)·127.5 truncated as DMD2 does, or x·127.5 + 128 as EDM does"
    )
    images: PositiveInt = Field(description="of one block")
    blocks: PositiveInt = Field(1, description="block b draws images b·images … (b + 1)·images − 1 of the seed")
    seed: int = Field(0, description="image i's noise is a function of (seed, i)")
    labels: Literal["balanced", "random"] = Field(
        "balanced", description="image i is asked for class i mod n, or for one drawn from (seed, i)"
    )
    ema: NonNegative | None = Field(
        None, description="half-life of the students' weight average; null: the first of the recipe, or none"
    )
    sampler: TeacherSampler = Field(
        TeacherSampler(), description="of the teacher's own row; NFE = 2·num_steps − 1, twice that with guidance"
    )
    reference: Reference = Reference()
    neighbours: PositiveInt = Field(3, description="k of precision and recall")
    neighbour_images: PositiveInt | None = Field(
        None, description="at most so many of each side for precision, recall and KID; null: all"
    )
    kid_subset: PositiveInt | None = Field(None, description="images of each of KID's 100 subsets; null: no KID")
    captions: Captions | None = None
    clip: ClipScore | None = Field(None, description="null: no CLIP score")

    @property
    def spaces(self) -> dict[str, FeatureSource]:
        """Name of each distance → the network of its features; the first is the protocol's own."""
        return {self.name: self.features} | ({self.second.name: self.second.features} if self.second else {})

    @model_validator(mode="after")
    def _true_to_its_name(self) -> Protocol:
        for name, features in self.spaces.items():
            if name.startswith("fid_") != isinstance(features, InceptionSource):
                raise ValueError(
                    f"{name}: `fid_…` is the name of a distance in Inception-v3's features, and of no other"
                )
        if self.second is not None and self.second.name == self.name:
            raise ValueError("the two feature spaces need two names")
        return self

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves null keys out, so that a key that a later version adds changes no digest where it is not used."""
        return {key: value for key, value in dump(self).items() if value is not None}
