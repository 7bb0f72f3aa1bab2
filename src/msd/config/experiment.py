"""The experiment as a whole: rows of the table, evaluation, and what no single key shows."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, ValidationError

from msd.config.base import TEACHER, Section, merge, nearest
from msd.config.networks import AnyNetwork, Network, TextNetwork
from msd.config.problems import describe
from msd.config.protocol import Protocol
from msd.config.recipe import Recipe
from msd.config.sources import (
    WITH_CAPTIONS,
    ClassifierSource,
    Data,
    DiffusersSource,
    KnownSource,
    TeacherSource,
    TeacherTrainSource,
)
from msd.config.text import DataCaptions, KnownComponents, Text, TinyComponents
from msd.config.text_partition import Hashed, Quadrants, TextKMeans
from msd.config.toy import Toy
from msd.config.training import Training
from msd.registry import KNOWN


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


def cross_check(experiment: Experiment) -> list[str]:
    """Problems that no single field shows."""
    problems = []
    for name in experiment.networks:
        if name == TEACHER:
            problems.append("networks.teacher: this name is reserved for the teacher's own architecture")
    teacher = experiment.teacher
    known = KNOWN.get(teacher.name) if isinstance(teacher, KnownSource) else None
    if isinstance(teacher, KnownSource) and known is None:
        problems.append(f"teacher.name: no known teacher {teacher.name!r}{nearest(teacher.name, list(KNOWN))}")
    if known is not None and (known.classes is None) != (experiment.text is not None):
        problems.append("teacher.name: a teacher that is conditioned on text goes with the section `text`")
    problems += _text_problems(experiment) + _caption_problems(experiment) + _guidance_problems(experiment)
    for claim in experiment.claims:
        for name in claim.variants:
            if name not in experiment.variants:
                known_names = list(experiment.variants)
                problems.append(f"claims.{claim.number}: no variant {name!r}{nearest(name, known_names)}")
    for name, variant in experiment.variants.items():
        if not isinstance(variant, StudentVariant):
            continue
        where = f"variants.{name}"
        if variant.network != TEACHER and variant.network not in experiment.networks:
            names = [TEACHER, *experiment.networks]
            problems.append(f"{where}.network: no network {variant.network!r}{nearest(variant.network, names)}")
        if known is not None and known.classes == 0 and variant.students > 1:
            problems.append(
                f"{where}.students: the teacher is unconditional, there is nothing to split among {variant.students}"
            )
        if isinstance(variant.partition, Explicit) and len(variant.partition.parts) != variant.students:
            problems.append(
                f"{where}.partition.parts: {len(variant.partition.parts)} parts for {variant.students} students"
            )
        if variant.stages not in (["dm"], ["dm", "adm"]):
            problems.append(f"{where}.stages: must be [dm] or [dm, adm], since adm resumes from dm")
        try:
            recipe = experiment.recipe_of(variant)
        except ValidationError as e:
            problems += [f"{where}.recipe.{describe(x, Recipe)}" for x in e.errors()]
            continue
        for stage in variant.stages:
            training: Training = getattr(recipe, stage)
            images = training.images * variant.images
            if images < training.batch_size or images % training.batch_size:
                problems.append(
                    f"{where}.images: {variant.images:g} × {training.images} images of {stage} = {images:g}, "
                    f"not a whole number of batches of {training.batch_size}"
                )
    return problems


def _text_problems(experiment: Experiment) -> list[str]:
    """What speaks of text where there is none, and of pixels where there is."""
    teacher = experiment.teacher.network if isinstance(experiment.teacher, TeacherTrainSource) else None
    used = {variant.network for variant in experiment.variants.values() if isinstance(variant, StudentVariant)}
    networks = {f"networks.{name}": network for name, network in experiment.networks.items() if name in used}
    networks |= {"teacher.network": teacher} if teacher else {}
    text, problems = experiment.text is not None, []
    for where, network in networks.items():
        if isinstance(network, TextNetwork) != text:
            problems.append(f"{where}: architecture unet2d goes with the section `text`, and no other does")
    for name, variant in experiment.variants.items():
        if isinstance(variant, StudentVariant):
            of_text = isinstance(variant.partition, Quadrants | TextKMeans | Hashed)
            if of_text and not text:
                problems.append(f"variants.{name}.partition: kind {variant.partition.kind} splits prompts, see `text`")
            if isinstance(variant.partition, Quadrants) and variant.students not in (1, 2, 4):
                problems.append(f"variants.{name}.students: quadrants make 1, 2 or 4 parts, not {variant.students}")
            if text and isinstance(variant.partition, BalancedKMeans):
                problems.append(f"variants.{name}.partition: kind kmeans is for classes, text-kmeans for prompts")
    if text and any(s.regression for recipe in _recipes(experiment) for s in (recipe.dm, recipe.adm)):
        problems.append("recipe: the regression loss is for classes; set `regression: null` in dm and adm")
    if isinstance(experiment.teacher, DiffusersSource) and not text:
        problems.append("teacher.source: a diffusers teacher goes with the section `text`")
    components = experiment.text.components if experiment.text else None
    if isinstance(components, KnownComponents):
        known_names = [name for name, known in KNOWN.items() if known.classes is None]
        if components.name not in known_names:
            problems.append(
                f"text.components.name: no teacher {components.name!r}{nearest(components.name, known_names)}"
            )
    return problems


def _caption_problems(experiment: Experiment) -> list[str]:
    """Whether data, judge, reference and partitions suit conditions that are captions of no class, or classes."""
    data, protocol, text = experiment.data, experiment.evaluation.protocol, experiment.text
    captioned = text is not None and isinstance(text.captions, DataCaptions)
    problems = []
    if captioned != (data.source in WITH_CAPTIONS):
        problems.append(
            f"data.source: {' and '.join(WITH_CAPTIONS)} go with text.captions {{source: data}}, no others do"
        )
    if captioned != (experiment.evaluation.judge is None):
        problems.append(f"evaluation.judge: {'set null, captions have no classes' if captioned else 'is needed'}")
    if protocol.clip is not None and text is None and protocol.captions is None:
        problems.append("evaluation.protocol.clip: a CLIP score needs captions")
    if data.source == "dmd2-latents":
        if protocol.captions is None or protocol.reference.images is None:
            problems.append("evaluation.protocol: latents have no images; name `captions` and `reference.images`")
        if text is not None and isinstance(text.components, TinyComponents):
            problems.append("text.components: tiny ones are made of images; name those that the latents were made with")
    for name, variant in experiment.variants.items():
        if not captioned or not isinstance(variant, StudentVariant) or variant.students == 1:
            continue
        if not isinstance(variant.partition, Quadrants | TextKMeans | Hashed):
            problems.append(f"variants.{name}.partition: new prompts need a router: quadrants, text-kmeans or hash")
    return problems


def _guidance_problems(experiment: Experiment) -> list[str]:
    """A teacher of classes that never saw an image without one; a file says so itself when it is drawn from."""
    network = experiment.teacher.network if isinstance(experiment.teacher, TeacherTrainSource) else None
    if (
        experiment.evaluation.protocol.sampler.guidance == 1
        or not isinstance(network, Network)
        or network.label_dropout
    ):
        return []
    return [
        "evaluation.protocol.sampler.guidance: the teacher has no label_dropout, so there is nothing to guide away from"
    ]


def _recipes(experiment: Experiment) -> list[Recipe]:
    """Of all rows; those that are wrong are told of elsewhere."""
    recipes = [experiment.recipe]
    for variant in experiment.variants.values():
        if isinstance(variant, StudentVariant):
            with contextlib.suppress(ValidationError):
                recipes.append(experiment.recipe_of(variant))
    return recipes
