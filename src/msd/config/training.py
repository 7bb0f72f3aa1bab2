"""How something is trained, and how a teacher is sampled."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from msd.config.base import NonNegative, Section, Share


class Optimizer(Section):
    """AdamW with linear warm-up and clipping of the gradient's norm."""

    learning_rate: PositiveFloat
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NonNegative = 0.01
    warmup_updates: int = Field(0, ge=0, description="updates over which the learning rate rises linearly")
    clip_norm: PositiveFloat = 10.0


class Training(Section):
    """Length and batch of a training stage."""

    images: PositiveInt = Field(description="images of (student) updates, a multiple of batch_size")
    batch_size: PositiveInt
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the networks' inner computations; weights, losses and optimisers are float32 always"
    )
    ema_halflife_images: NonNegative | list[NonNegative] = Field(
        0.0, description="half-life of the weight average in images, 0: none; of a list, later stages use the first"
    )
    ema_rampup: Share = Field(0.05, description="half-life is at most this share of the images so far; 0: no ramp-up")

    @property
    def ema_halflives(self) -> list[float]:
        """Of all averages; the first is the one that later stages use."""
        halflives = self.ema_halflife_images
        return halflives if isinstance(halflives, list) else [halflives]

    @field_validator("ema_halflife_images")
    @classmethod
    def _one_of_each(cls, halflives: float | list[float]) -> float | list[float]:
        if isinstance(halflives, list) and (not halflives or len(set(halflives)) != len(halflives)):
            raise ValueError("the list must name one half-life or more, each once")
        return halflives

    @model_validator(mode="after")
    def _whole_batches(self) -> Training:
        if self.images % self.batch_size:
            raise ValueError(f"images ({self.images}) is not a multiple of batch_size ({self.batch_size})")
        return self


class NoiseDistribution(Section):
    """Log-normal σ, with a share of the draws uniform on the Karras grid between sigma_max and `high_sigma_min`."""

    p_mean: float = -1.2
    p_std: PositiveFloat = 1.2
    high_sigma_share: Share = 0.0
    high_sigma_min: PositiveFloat = 10.0


class TeacherTraining(Training):
    """EDM's denoising loss (arXiv 2206.00364, section 5)."""

    flip: bool = Field(False, description="mirror each training image left to right with probability ½")
    optimizer: Optimizer
    noise: NoiseDistribution = NoiseDistribution()


class Sampler(Section):
    """Heun's sampler for the teacher."""

    num_steps: PositiveInt = 18
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0

    @property
    def nfe(self) -> int:
        """Network evaluations per image: two in every step but the last."""
        return 2 * self.num_steps - 1


class TeacherSampler(Sampler):
    """The same, stochastic where `S_churn` is not 0 (the names are EDM's), guided where `guidance` is not 1."""

    S_churn: NonNegative = 0.0
    S_min: NonNegative = 0.0
    S_max: NonNegative | None = Field(None, description="null: no upper end")
    S_noise: PositiveFloat = 1.0
    guidance: PositiveFloat = Field(
        1.0,
        description="scale of classifier-free guidance, as the recipe's `teacher_guidance`; 1: none; doubles the NFE",
    )

    @property
    def nfe(self) -> int:
        """Of a guided sampler twice as many: with the condition and without."""
        return super().nfe * (1 if self.guidance == 1 else 2)

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A deterministic sampler without guidance is described as ``Sampler`` describes it."""
        return {
            key: value
            for key, value in dump(self).items()
            if value is not None
            and (self.S_churn or not key.startswith("S_"))
            and (self.guidance != 1 or key != "guidance")
        }
