"""params.yaml, overlays and single settings → one typed experiment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from msd.config.base import merge
from msd.config.check import cross_check
from msd.config.experiment import Experiment
from msd.config.problems import describe
from msd.errors import ConfigError, MissingFileError


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
    folder = Path(params).parent
    merged: dict[str, Any] = {}
    for layer in [*(_read(Path(p)) for p in (params, *configfiles)), *map(_parse_override, overrides)]:
        merged = _with_files(merge(merged, layer), folder)
    where = " + ".join([str(params), *map(str, configfiles), *overrides])
    try:
        experiment = Experiment.model_validate(merged)
        problems = cross_check(experiment)
    except ValidationError as e:
        problems = [describe(x, Experiment) for x in e.errors()]
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


def _with_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with a toy's and a protocol's file read in, so that later layers can change single keys of them."""
    toy, evaluation = settings.get("toy"), settings.get("evaluation")
    if isinstance(toy, str):
        settings = settings | {"toy": _read(folder / toy)}
    if isinstance(evaluation, dict) and isinstance(evaluation.get("protocol"), str):
        settings = settings | {"evaluation": evaluation | {"protocol": _read(folder / evaluation["protocol"])}}
    return settings


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
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
