"""Networks: architecture and preconditioning."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    field_validator,
    model_validator,
)

from msd.config.base import Section, Share


class Song(Section):
    """What tells DDPM++ (the defaults) from NCSN++ (fourier, residual, taps 1 3 3 1, noise_channel_mult 2)."""

    embedding: Literal["positional", "fourier"] = "positional"
    noise_channel_mult: PositiveInt = Field(1, description="width of the noise embedding, in units of model_channels")
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    taps: list[PositiveFloat] = Field(
        default=[1.0, 1.0], min_length=2, description="of the resampling filter, an even number"
    )

    @field_validator("taps")
    @classmethod
    def _even(cls, taps: list[float]) -> list[float]:
        if len(taps) % 2:
            raise ValueError("the resampling filter needs an even number of taps")
        return taps


class Schedule(Section):
    """DDPM's noise levels with √β evenly spaced; the defaults are Stable Diffusion's."""

    steps: PositiveInt = 1000
    beta_start: PositiveFloat = 0.00085
    beta_end: PositiveFloat = 0.012


class TextNetwork(Section):
    """A text-conditional denoiser of latents: diffusers' UNet2DConditionModel that predicts ε."""

    architecture: Literal["unet2d"]
    unet: dict[str, Any] = Field(description="arguments of diffusers' UNet2DConditionModel (a unet/config.json)")
    text_length: PositiveInt = Field(77, description="tokens of a prompt")
    schedule: Schedule = Schedule()

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt's hidden states."""
        return self.text_length, self.unet["cross_attention_dim"]

    @field_validator("unet")
    @classmethod
    def _of_arguments(cls, unet: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(unet.get("cross_attention_dim"), int):
            raise ValueError("cross_attention_dim must be a number, the width of the text encoder's hidden states")
        return {key: value for key, value in unet.items() if not key.startswith("_")}


class Network(Section):
    """A UNet and its preconditioning; resolution, channels and classes come from the data."""

    architecture: Literal["adm", "song"] = Field("adm", description="song: DDPM++ and NCSN++")
    preconditioning: Literal["edm", "vp", "ve", "iddpm"] = "edm"
    model_channels: int = Field(ge=4, multiple_of=2, description="base width")
    channel_mult: list[PositiveInt] = Field(
        min_length=1, description="width of each resolution level, in units of model_channels"
    )
    num_blocks: PositiveInt = Field(description="residual blocks per level")
    attn_resolutions: list[PositiveInt] = Field(default=[], description="resolutions with self-attention")
    dropout: Share = 0.0
    label_dropout: Share = Field(0.0, description="share of labels dropped in training")
    augment_dim: int = Field(0, ge=0, description="width of augmentation labels; 0: none")
    pixel_unshuffle: PositiveInt = Field(1, description="pixels per side folded into channels around the network")
    song: Song | None = Field(None, description="what only `song` has; defaults: DDPM++")

    @model_validator(mode="before")
    @classmethod
    def _song_of_song(cls, values: Any) -> Any:
        if isinstance(values, dict):
            song = values.get("architecture") == "song"
            if values.get("song") is not None and not song:
                raise ValueError("the block `song` is for architecture: song")
            if song and values.get("song") is None:
                return {**values, "song": {}}
        return values


def _kind_of(network: Any) -> str:
    """Networks of pixels unless they say otherwise; `song` is described like `adm`."""
    architecture = network.get("architecture") if isinstance(network, dict) else getattr(network, "architecture", None)
    return "unet2d" if architecture == "unet2d" else "adm"


AnyNetwork: TypeAlias = Annotated[
    Annotated[Network, Tag("adm")] | Annotated[TextNetwork, Tag("unet2d")], Discriminator(_kind_of)
]
ANY_NETWORK: TypeAdapter[Network | TextNetwork] = TypeAdapter(AnyNetwork)
