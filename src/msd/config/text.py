"""Text to image: captions instead of classes, and the frozen parts around the denoiser."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveInt, Tag, field_validator

from msd.config.base import Commit, Section, Sha256
from msd.config.training import Optimizer, Training


class ClassCaptions(Section):
    """Captions of labelled images: each image has one of the templates, filled with the name of its class."""

    source: Literal["classes"] = Field("classes", exclude=True)  # no part of a digest
    names: list[str] | None = Field(None, description="of the classes, in their order; null: those of the data")
    templates: list[str] = Field(min_length=1, description="`{}` stands for the name")

    @field_validator("names", "templates")
    @classmethod
    def _of_one_line(cls, given: list[str] | None) -> list[str] | None:
        for text in given or []:
            if len(text.splitlines()) != 1:
                raise ValueError(f"{text!r} must be one line")
        return given

    @field_validator("templates")
    @classmethod
    def _with_a_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"{template!r} must hold {{}} once, where the name goes")
        if len(set(templates)) != len(templates):
            raise ValueError("the templates must differ")
        return templates


class DataCaptions(Section):
    """Captions that come with the data (`data.source` captioned or dmd2-latents), and further prompts without images.

    Students are asked for all of these prompts; images, where a stage needs real ones, are those of the data.
    """

    source: Literal["data"]
    prompts: str | None = Field(None, description="a file or LMDB of further prompts (docs/prompts.md); null: none")
    prompts_sha256: Sha256 | None = Field(None, description="of that file; checked")


def _source_or(default: str) -> Discriminator:
    """Which of several sources a block is of, where one of them need not be named."""

    def source(block: Any) -> Any:
        return block.get("source", default) if isinstance(block, dict) else getattr(block, "source", default)

    return Discriminator(source)


AnyCaptions: TypeAlias = Annotated[
    Annotated[ClassCaptions, Tag("classes")] | Annotated[DataCaptions, Tag("data")], _source_or("classes")
]


class AutoencoderTraining(Training):
    """Squared error and a little Kullback–Leibler divergence (arXiv 1312.6114)."""

    kl_weight: NonNegativeFloat = 1e-4
    precision: Literal["float32"] = "float32"
    optimizer: Optimizer


class TinyAutoencoder(Section):
    """A small AutoencoderKL of diffusers; every level but the last halves the side."""

    channels: list[PositiveInt] = Field(min_length=1, description="of each level; multiples of `groups`")
    latent_channels: PositiveInt = 4
    groups: PositiveInt = Field(8, description="of the group normalisations")
    training: AutoencoderTraining
    seed: int = 0


class TinyEncoder(Section):
    """A small CLIP text model with random weights and byte pairs learnt from the captions."""

    source: Literal["tiny"] = Field("tiny", exclude=True)  # digests of settings are older than the other source
    vocabulary: PositiveInt = 600
    length: PositiveInt = Field(16, description="tokens of a prompt, with those of start and end")
    width: PositiveInt = 64
    layers: PositiveInt = 2
    seed: int = 0


class FolderEncoder(Section):
    """A text encoder that is copied: a CLIP text model, or a BERT sentence encoder such as all-MiniLM-L6-v2."""

    source: Literal["folder"]
    path: str = Field(description="of model and tokenizer, together or in text_encoder/ and tokenizer/")
    length: int | None = Field(
        None, ge=3, le=77, description="tokens of a prompt, with those of start and end, of a BERT; null: 77"
    )


Encoder: TypeAlias = Annotated[
    Annotated[TinyEncoder, Tag("tiny")] | Annotated[FolderEncoder, Tag("folder")], _source_or("tiny")
]


class TinyComponents(Section):
    """Made here, for miniature models."""

    source: Literal["tiny"]
    autoencoder: TinyAutoencoder
    encoder: Encoder = TinyEncoder()


class FolderComponents(Section):
    """Those of a diffusers pipeline."""

    source: Literal["folder"]
    path: str = Field(description="with vae/, text_encoder/ and tokenizer/, safetensors only")


class KnownComponents(Section):
    """Those of a published teacher (docs/teachers.md)."""

    source: Literal["known"]
    name: str


class TinyDecoder(Section):
    """diffusers' AutoencoderTiny (TAESD), which draws pictures sooner; metrics are by the full autoencoder always."""

    path: str = Field(description="a folder with config.json and diffusion_pytorch_model.safetensors")


class HubComponents(Section):
    """Those of a diffusers pipeline on the Hugging Face hub."""

    source: Literal["hf"]
    repo: str
    revision: Commit


Components: TypeAlias = Annotated[
    TinyComponents | FolderComponents | KnownComponents | HubComponents, Field(discriminator="source")
]


class Text(Section):
    """What makes an experiment one of text to image (docs/text-to-image.md)."""

    captions: AnyCaptions
    components: Components = Field(description="autoencoder and text encoder; never trained with the students")
    tiny_decoder: TinyDecoder | None = Field(
        None, description="beside the autoencoder: its latency is measured too, and `msd sample` can use it; null: none"
    )
    pooling: Literal["prompt", "end", "all"] = Field(
        "prompt", description="which states the pooled embedding is the mean of; the partition is made of it"
    )
    prompt_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of captions that a teacher's training replaces by the empty prompt"
    )
