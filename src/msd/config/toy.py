"""The 2-D toy: settings of its distribution, its students and its map. Only `msd.toy` gives them a meaning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from msd.config.base import Section
from msd.config.recipe import Dm
from msd.config.training import Optimizer, Sampler

Counts = Annotated[list[PositiveInt], Field(min_length=1)]
Seeds = Annotated[list[int], Field(min_length=3)]  # for an interval
NO_CLIPPING = 1e6  # a norm that no gradient of the toy comes near


class Pinwheel(Section):
    """Conditions are the arms of a pinwheel, each a row of Gaussians; neighbours differ by a small turn."""

    conditions: PositiveInt
    modes: PositiveInt = Field(description="Gaussians of an arm")
    twist: float = Field(description="radians by which an arm bends from its inner end to its outer one")
    inner_radius: PositiveFloat = Field(description="of an arm, in units of its outer radius")
    spread: PositiveFloat = Field(description="standard deviation of the outermost Gaussian, in the same units")


class ToyStart(Section):
    """Where the students of a seed begin, whatever K: one network, taught by the pairs alone, that branches into K."""

    images: PositiveInt = Field(description="pairs that it learns from, a multiple of the pairs' batch")
    optimizer: Optimizer


class ToyMeasure(Section):
    """How students are compared with the teacher's ODE."""

    noises: PositiveInt = Field(description="per condition")
    sampler: Sampler = Field(Sampler(num_steps=128), description="of the teacher's ODE that is the target")
    directions: PositiveInt = Field(32, description="of the sliced Wasserstein distance, evenly spread")


class ToyMap(Section):
    """The plane of student width and training budget; a cell's budget is shared by all of its students."""

    widths: Counts
    images: Counts = Field(description="budgets: training images of all students together")
    seeds: Seeds = Field(description="of the map's cells; more of them settle more of its ties")


class Toy(Section):
    """Two dimensions, where the teacher is known exactly: when do many students pay?"""

    distribution: Pinwheel
    students: Counts = Field(description="every K to compare; each divides the number of conditions")
    seeds: Seeds = Field(description="of the figure")
    width: PositiveInt = Field(description="of a student's hidden layers")
    layers: PositiveInt = Field(2, description="hidden layers of students and fake scores")
    fake_score_width: PositiveInt = Field(description="of a fake score's hidden layers, whatever the students' width")
    start: ToyStart
    dm: Dm = Field(description="the stage's recipe; `images` is for each student of the figure")
    measure: ToyMeasure
    map: ToyMap | None = None

    @model_validator(mode="after")
    def _it_fits_together(self) -> Toy:
        for k in self.students:
            if self.distribution.conditions % k:
                raise ValueError(f"{k} students cannot share {self.distribution.conditions} conditions equally")
        if 1 not in self.students:
            raise ValueError("students must name 1, which the others are compared with")
        seeds_of_map = self.map.seeds if self.map else []
        for name, values in (("students", self.students), ("seeds", self.seeds), ("map.seeds", seeds_of_map)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must name each once")
        if self.dm.regression is None or self.dm.regression.metric == "lpips":
            raise ValueError("dm.regression must be there, with the metric l2 or huber")
        if min(self.dm.student.clip_norm, self.dm.fake_score.clip_norm) < NO_CLIPPING:
            raise ValueError("clip_norm must be 1e6 or more: one norm over all students would tie them together")
        if self.dm.teacher_guidance != 1 or self.dm.strict_alternation or self.dm.precision != "float32":
            raise ValueError("dm: the toy knows no guidance, no strict alternation and no bfloat16")
        for budget in self.map.images if self.map else []:
            if any(budget % (k * self.dm.batch_size) for k in self.students):
                raise ValueError(f"map.images: {budget} cannot be shared by the students in whole batches")
        return self
