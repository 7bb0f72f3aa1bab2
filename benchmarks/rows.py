"""What is measured: the presets, the levers, and the settings of each row of the table. No PyTorch here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from msd.config import Adm, Compute, Dm, Experiment, load, nearest
from msd.errors import ConfigError

Settings = TypeVar("Settings", Dm, Compute)
ROOT = Path(__file__).resolve().parents[1]
UPDATES = {"dm": "dm", "dm+adm": "adm"}  # name in the table → stage of the recipe


class Preset(NamedTuple):
    """A configuration of this repository.

    Attributes:
        batch: how many images a generated batch has; None: as its recipe says.
        text: a known teacher that is conditioned on text, instead of the configuration's.
    """

    overlays: list[Path]
    batch: int | None
    text: str | None = None


PRESETS = {
    "embedded": Preset([], None),
    "imagenet64": Preset([ROOT / "experiments/imagenet64.yaml"], 40),  # the recipe's 280 shared by seven GPUs
    "sd15": Preset([ROOT / "experiments/imagenet64.yaml", ROOT / "benchmarks/sd15.yaml"], 32, "stable-diffusion-v1-5"),
}


class Lever(NamedTuple):
    """One key of the configuration that changes how fast an update is, and its values."""

    section: Literal["recipe", "compute"]
    key: str
    off: Any
    on: Any


def levers(batch: int) -> dict[str, Lever]:
    """All levers, for generated batches of ``batch`` images."""
    return {
        "bf16": Lever("recipe", "precision", "float32", "bfloat16"),
        "channels-last": Lever("compute", "channels_last", False, True),
        "compile": Lever("compute", "compile", False, True),
        "micro-half": Lever("compute", "micro_batch", None, -(-batch // 2)),
        "micro-quarter": Lever("compute", "micro_batch", None, -(-batch // 4)),
        "checkpointing": Lever("compute", "gradient_checkpointing", False, True),
        "teacher-features": Lever("recipe", "discriminator_features", "fake_score", "teacher"),
        "strict-alternation": Lever("recipe", "strict_alternation", False, True),
    }


LEVERS = tuple(levers(1))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        update: ``dm`` or ``dm+adm``.
        name: how it departs from the base.
        recipe: settings of the stage; a call of its step is ``two_time_scale_ratio`` iterations of ``batch_size``.
        compute: device, threads and memory.
    """

    update: str
    name: str
    recipe: Dm
    compute: Compute

    @property
    def work(self) -> str:
        """Equal for rows whose updates take the same FLOPs."""
        return f"{self.update} {self.recipe.model_dump_json(exclude={'precision'})}"


def chosen(text: str) -> list[str]:
    """The levers that ``all``, ``none`` or a list with commas names.

    Raises:
        ConfigError: one of them is unknown.
    """
    if text in ("all", "none"):
        return list(LEVERS) if text == "all" else []
    names = text.split(",")
    for name in names:
        if name not in LEVERS:
            raise ConfigError(f"There is no lever {name!r}{nearest(name, LEVERS)}", todo="Or give `all` or `none`.")
    return names


def experiment_of(preset: str) -> Experiment:
    """The configuration that a preset measures."""
    return load(ROOT / "params.yaml", PRESETS[preset].overlays)


def rows_of(
    preset: str, wanted: Sequence[str], base: Collection[str], batch: int | None, device: str, threads: int
) -> Iterator[Row]:
    """For each kind of update the base, then a row for each wanted lever, which is the other way round than there.

    Args:
        preset: whose configuration; its values of the levers' keys are replaced.
        wanted: the levers to measure.
        base: the levers that are on in the base.
        batch: images of a generated batch; None: the preset's.
        device, threads: of all rows.
    """
    experiment = experiment_of(preset)
    for update, stage in UPDATES.items():
        recipe: Dm = getattr(experiment.recipe, stage)
        sized = _resized(recipe, batch or PRESETS[preset].batch or recipe.batch_size)
        compute = Compute.model_validate({"device": device, "threads": threads})
        yield _row(update, "base", sized, compute, set(base))
        for name in wanted:
            if levers(1)[name].key in {*type(recipe).model_fields, *Compute.model_fields}:
                sign = "−" if name in base else "+"
                yield _row(update, f"{sign} {name}", sized, compute, set(base) ^ {name})


def _resized(recipe: Dm, batch: int) -> Dm:
    """The recipe with batches of ``batch`` images, and batches of regression pairs in the same proportion."""
    changes: dict[str, Any] = {"batch_size": batch, "images": batch}
    if recipe.regression is not None:
        pairs = max(recipe.regression.batch_size * batch // recipe.batch_size, 1)
        changes["regression"] = recipe.regression.model_copy(update={"batch_size": pairs})
    return recipe.model_copy(update=changes)


def _row(update: str, name: str, recipe: Dm, compute: Compute, on: set[str]) -> Row:
    every = levers(recipe.batch_size)
    values = {lever.key: lever.off for lever in every.values()} | {every[n].key: every[n].on for n in every if n in on}
    return Row(update, name, _with(recipe, values), _with(compute, values))


def _with(settings: Settings, values: dict[str, Any]) -> Settings:
    """Settings with those of the values whose keys they have, validated."""
    kind = type(settings)
    own = {key: value for key, value in values.items() if key in kind.model_fields}
    return kind.model_validate(settings.model_dump() | own)


def stage_settings(update: str, recipe: dict[str, Any]) -> Dm:
    """The settings of a row's stage, from JSON."""
    return (Adm if UPDATES[update] == "adm" else Dm).model_validate(recipe)
