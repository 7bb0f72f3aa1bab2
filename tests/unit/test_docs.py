"""The written pages agree with the code: reference, error codes, README's commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from msd import errors
from msd.cli.main import build_parser
from msd.config import load
from msd.reference import reference
from msd.report.readme import check_readme

ROOT = Path(__file__).resolve().parents[2]


def test_reference_of_params_is_current() -> None:
    assert (ROOT / "docs/params.md").read_text() == reference(), "run: msd params --reference > docs/params.md"


def test_every_error_class_and_its_code_is_documented() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (\w+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE))
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MsdError)]
    assert {str(c.exit_code): c.__name__ for c in classes} == table


def test_readme_commands_parse() -> None:
    text = (ROOT / "README.md").read_text()
    commands = [shlex.split(line.split("#")[0]) for line in re.findall(r"^msd .*$", text, re.MULTILINE)]
    assert len(commands) >= 5
    for command in commands:
        build_parser().parse_args(command[1:])


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets


OVERLAYS = sorted(set((ROOT / "experiments").glob("*.yaml")) - {ROOT / "experiments/toy2d.yaml"})


@pytest.mark.parametrize("recipe", OVERLAYS, ids=lambda p: p.stem)
def test_shipped_recipes_resolve(recipe: Path) -> None:
    expected = "mnist" if recipe.stem == "claims" else recipe.stem  # it goes on where `make all` ended
    assert load(ROOT / "params.yaml", [recipe]).experiment == expected


def test_overlays_on_a_recipe_resolve() -> None:
    short, fid = (ROOT / f"experiments/overlays/fashion-mnist-{name}.yaml" for name in ("short", "fid"))
    below = [ROOT / "experiments/fashion-mnist.yaml", short]
    assert load(ROOT / "params.yaml", below).experiment == "fashion-mnist-short"
    assert load(ROOT / "params.yaml", [*below, fid]).evaluation.protocol.name == "fid_50k"


def test_environment_yml_installs_the_lock() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in content["dependencies"] if isinstance(d, dict))
    assert any("requirements.lock" in line for line in pip)
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_readme_shows_the_committed_numbers() -> None:
    check_readme(ROOT / "README.md", ROOT / "docs/results-mnist.json")
