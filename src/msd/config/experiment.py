"""The experiment as a whole: rows of the table, evaluation, and what no single key shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

from msd.config.base import TEACHER, Section, merge
from msd.config.networks import AnyNetwork
from msd.config.protocol import Protocol
from msd.config.recipe import Recipe
from msd.config.sources import (
    ClassifierSource,
    Data,
    TeacherSource,
)
from msd.config.text import Text
from msd.config.text_partition import Hashed, Quadrants, TextKMeans
from msd.config.toy import Toy


class Consecutive(Section):
    kind: Literal["consecutive"] = "consecutive"


class Random(Section):
    kind: Literal["random"]
    seed: int = 0


class BalancedKMeans(Section):
    """Balanced k-means over the teacher's own class embeddings."""

    kind: Literal["kmeans"]
    seed: int = 0


class Explicit(Section):
    """Parts written by hand."""

    kind: Literal["explicit"]
    parts: list[list[int]]


PartitionSpec: TypeAlias = Annotated[
    Consecutive | Random | BalancedKMeans | Explicit | Quadrants | TextKMeans | Hashed, Field(discriminator="kind")
]
StageName: TypeAlias = Literal["dm", "adm"]


class TeacherVariant(Section):
    """The teacher itself as a row of the table."""

    model: Literal["teacher"]


class WeightsVariant(Section):
    """A one-step student that was made elsewhere, measured like the others."""

    model: Literal["weights"]
    path: str = Field(description="a safetensors file written by msd; `msd teacher convert` makes one of DMD2's files")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="checked at every use")


class StudentVariant(Section):
    """K one-step students. Fair comparisons vary only the first four fields."""

    model: Literal["students"] = "students"
    students: PositiveInt = Field(description="K")
    partition: PartitionSpec = Consecutive()
    network: str = Field(TEACHER, description="a name under `networks`; `teacher` is the teacher's architecture")
    images: PositiveFloat = Field(1.0, description="factor on the images of the dm and adm stages, per student")
    stages: list[StageName] = Field(default=["dm", "adm"])
    recipe: dict[str, Any] = Field(default={}, description="changes to the recipe for this row; the table marks it")


def _model_of(variant: Any) -> str | None:
    """Rows are students unless they say otherwise."""
    return variant.get("model", "students") if isinstance(variant, dict) else getattr(variant, "model", None)


Variant: TypeAlias = Annotated[
    Annotated[TeacherVariant, Tag("teacher")]
    | Annotated[WeightsVariant, Tag("weights")]
    | Annotated[StudentVariant, Tag("students")],
    Discriminator(_model_of),
]


class Breakdown(Section):
    """Who is good at what: every student on every part, each class by itself, and the nearest training images."""

    images: PositiveInt | None = Field(
        None, description="drawn by every student, the same number of each class; null: as many as `evaluation.images`"
    )
    nearest: PositiveInt = Field(500, description="images whose nearest training image is looked up")
    columns: PositiveInt = Field(4, description="noises of the picture in which every student draws the same")


class Evaluation(Section):
    """What the rows of the table are measured by."""

    protocol: Protocol = Field(
        description="a file, relative to the folder of params.yaml; an overlay names another or changes single keys"
    )
    judge: ClassifierSource | None = Field(
        description="says which class an image shows; has no share in the distance; null: conditions have no classes"
    )
    batch_size: PositiveInt = Field(250, description="images drawn at once; processes share the work by whole batches")
    latency_repeats: PositiveInt = 50
    throughput_batch: PositiveInt = Field(64, description="images at once where images per second are measured")
    gallery_columns: PositiveInt = 10
    breakdown: Breakdown = Breakdown()


class Compute(Section):
    """How, not what: never part of an identity."""

    threads: PositiveInt = Field(1, description="CPU threads of a training job; bit-equality needs the same number")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    micro_batch: PositiveInt | None = Field(
        None, description="most images of a batch at once on one device; null: as many as a GPU's memory holds"
    )
    channels_last: bool = Field(False, description="memory layout of the networks; speeds up some, slows down others")
    gradient_checkpointing: bool = Field(False, description="half the memory of activations for a third more work")
    compile: bool = Field(False, description="compile the networks' blocks; needs a C++ compiler and some minutes")
    shard: bool = Field(
        False,
        description="spread weights and optimisers over a student's processes (FSDP2); their number divides the batch",
    )
    log_every_updates: PositiveInt = 2
    checkpoint_every_updates: PositiveInt = 10
    snapshot_every_updates: PositiveInt | None = Field(
        None, description="draw a picture and export the averaged weights that often; null: at the end only"
    )
    give_up_after_skipped: PositiveInt = Field(
        20, description="updates in a row with a gradient that is not finite; they are skipped, then training stops"
    )
    max_kimg_this_run: PositiveFloat | None = Field(
        None, description="a training job saves and ends with 75 after so many thousand images; run it again to go on"
    )
    spare_seconds: PositiveInt = Field(
        180, description="a SLURM job saves so long before its walltime is over, and asks to be started again"
    )


class Claim(Section):
    """A statement about variants, put to the test with several training seeds (docs/claims.md)."""

    number: str = Field(pattern=r"^[0-9]+[a-z]?$", description="of the claim, the same for all data sets")
    claim: str = Field(description="what should hold, one sentence")
    paper: str = Field(description="what the paper says of it, with its numbers")
    expected: list[tuple[str, str]] = Field(
        min_length=1, description="pairs of variants: the first should have the smaller distance"
    )
    beside: list[str] = Field(default=[], description="further variants to show with them")
    seeds: PositiveInt = Field(3, description="training runs of each variant; with one there is no interval")
    note: str = Field("", description="what one must know to read the outcome")

    @property
    def variants(self) -> list[str]:
        """All that it needs, each once, in the order they are named."""
        return list(dict.fromkeys([name for pair in self.expected for name in pair] + self.beside))


class Experiment(Section):
    """The whole of params.yaml after overlays."""

    experiment: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="results go to results/<experiment>/")
    seed: int = 0
    data: Data
    teacher: TeacherSource
    text: Text | None = Field(None, description="text to image, conditioned on captions; null: on classes")
    networks: dict[str, AnyNetwork] = Field(default={})
    recipe: Recipe
    evaluation: Evaluation
    compute: Compute = Compute()
    toy: Toy | None = Field(
        None, description="the 2-D toy that opens the report, or the file that holds it (`load` reads it); null: none"
    )
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], Variant] = Field(min_length=1)
    claims: list[Claim] = Field(default=[], description="statements about the variants; `snakemake claims` tests them")

    def recipe_of(self, variant: StudentVariant) -> Recipe:
        """The recipe with the variant's own changes."""
        return Recipe.model_validate(merge(self.recipe.model_dump(mode="json"), variant.recipe))
