"""The stages of distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from msd.config.base import NonNegative, Section
from msd.config.training import NoiseDistribution, Optimizer, Sampler, Training


class Tsm(Training):
    """Teacher score matching, only for networks other than the teacher's (MSD, arXiv 2410.23274)."""

    images: int = Field(ge=0, description="a multiple of batch_size; 0: the initial weights as they are, no training")
    initial_weights: Literal["random", "sliced"] = Field("random", description="sliced: cut out of the teacher's")
    optimizer: Optimizer
    noise: NoiseDistribution = NoiseDistribution(high_sigma_share=0.25)


class Regression(Section):
    """Pairs (noise, teacher's sample) for DM's regression loss; drawn once for all conditions."""

    weight: PositiveFloat = 0.25
    pairs: PositiveInt = 25000
    batch_size: PositiveInt
    filtered: bool = Field(
        False, description="a student sees the pairs of its own part only; the paper keeps all, which gave a better FID"
    )
    metric: Literal["huber", "l2", "lpips"] = Field(
        "huber", description="lpips: as in the paper, on RGB images; its VGG16 is downloaded at first use (528 MB)"
    )
    sampler: Sampler = Sampler()


class Dm(Training):
    """Distribution matching (arXiv 2311.18828, 2405.14867)."""

    student: Optimizer
    fake_score: Optimizer
    two_time_scale_ratio: PositiveInt = Field(description="fake-score updates per student update")
    strict_alternation: bool = Field(
        False, description="the fake score does not learn in the iteration in which the student does"
    )
    teacher_guidance: PositiveFloat = Field(1.0, description="scale of classifier-free guidance; 1: none")
    grid_range: tuple[int, int] = Field((20, 980), description="noise levels of the DM gradient, ends included")
    regression: Regression | None = None

    @model_validator(mode="after")
    def _fake_score_learns(self) -> Dm:
        if self.strict_alternation and self.two_time_scale_ratio == 1:
            raise ValueError("strict_alternation with two_time_scale_ratio 1: the fake score would never learn")
        return self


class Adm(Dm):
    """Adversarial distribution matching: DM goes on with a discriminator on the fake score's bottleneck."""

    discriminator: Optimizer
    discriminator_features: Literal["fake_score", "teacher"] = Field(
        "fake_score", description="whose bottleneck the head sees; teacher: of the pass that gives the score as well"
    )
    divergence: Literal["reverse_kl", "jensen_shannon", "forward_kl"] = Field(
        "reverse_kl", description="others weight each image's DM gradient by the discriminator's logit (f-distill)"
    )
    generator_weight: NonNegative = Field(3e-3, description="w_G")
    discriminator_weight: NonNegative = Field(1e-2, description="w_D")
    r1_weight: NonNegative = Field(0.0, description="of the R1-style penalty on real images, by finite differences")
    r1_sigma: PositiveFloat = Field(0.01, description="how far the penalty moves an image, standard deviation")


class Recipe(Section):
    """One block for all variants, so that a comparison compares one thing."""

    tsm: Tsm
    dm: Dm
    adm: Adm
