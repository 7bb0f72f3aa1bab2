"""params.yaml, overlays and settings: what they may say, how they are laid over each other, what a reader is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ROOT

from msd import config
from msd.config import StudentVariant, load
from msd.errors import ConfigError, MissingFileError

PARAMS = ROOT / "params.yaml"


def overlay(folder: Path, content: Any) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def problems(*overrides: str, files: tuple[Path, ...] = ()) -> list[str]:
    """The problems that a configuration is refused for, one a line."""
    with pytest.raises(ConfigError) as refused:
        load(PARAMS, files, overrides)
    return [line.strip() for line in refused.value.why.splitlines()]


@pytest.mark.parametrize(
    ("setting", "key", "nearest"),
    [
        ("recip.dm.images=64", "recip", "recipe"),
        ("recipe.dm.student.learning_rat=1e-3", "recipe.dm.student.learning_rat", "learning_rate"),
        ("teacher.sha25=abc", "teacher.sha25", "sha256"),
        ("networks.small.model_chanels=8", "networks.small.model_chanels", "model_channels"),
        ("evaluation.protocol.features.pth=x", "evaluation.protocol.features.pth", "path"),
        ("recipe.dm.regression.sampler.steps=3", "recipe.dm.regression.sampler.steps", "num_steps"),
        ("variants={a: {studnts: 2, students: 2}}", "variants.a.studnts", "students"),
        ("variants={a: {students: 2, partition: {kind: random, sed: 1}}}", "variants.a.partition.sed", "seed"),
        ("variants={a: {students: 2, recipe: {dm: {imags: 64}}}}", "variants.a.recipe.dm.imags", "images"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(setting: str, key: str, nearest: str) -> None:
    (problem,) = problems(setting)
    assert problem == f"{key}: unknown key; did you mean {nearest!r}?"


def test_all_problems_are_reported_at_once() -> None:
    found = problems("seeed=1", "data.evaluation_share=2", "recipe.adm.images=100", "compute.device=tpu")
    assert len(found) == 4
    for key in ("seeed", "data.evaluation_share", "recipe.adm", "compute.device"):
        assert any(line.startswith(f"{key}:") for line in found), key


def test_problems_between_fields_are_reported_at_once() -> None:
    found = problems(
        "variants={a: {students: 1, network: smal}, b: {students: 3, partition: {kind: explicit, parts: [[0], [1]]}},"
        " c: {students: 1, stages: [adm]}, d: {students: 1, images: 0.001}}"
    )
    assert "variants.a.network: no network 'smal'; did you mean 'small'?" in found
    assert "variants.b.partition.parts: 2 parts for 3 students" in found
    assert any(line.startswith("variants.c.stages: must be [dm] or [dm, adm]") for line in found)
    assert any(line.startswith("variants.d.images:") for line in found)


def test_images_times_factor_must_be_whole_batches() -> None:
    assert load(PARAMS, (), ["variants={a: {students: 1, images: 0.25}}"]).variants["a"].images == 0.25
    (problem,) = problems(
        "recipe.dm={images: 6400, batch_size: 64}", "variants={a: {students: 1, images: 0.015, stages: [dm]}}"
    )
    assert problem == "variants.a.images: 0.015 × 6400 images of dm = 96, not a whole number of batches of 64"


def test_a_recipe_of_whole_batches_only() -> None:
    assert problems("recipe.tsm={images: 130, batch_size: 128}") == [
        "recipe.tsm: Value error, images (130) is not a multiple of batch_size (128)"
    ]


def test_overlays_merge_key_by_key_in_order(tmp_path: Path) -> None:
    file = overlay(tmp_path, {"recipe": {"dm": {"images": 640, "student": {"learning_rate": 0.5}}}})
    base, changed = load(PARAMS), load(PARAMS, [file], ["recipe.dm.images=1280"])
    assert changed.recipe.dm.images == 1280  # the command line comes last
    assert changed.recipe.dm.student.learning_rate == 0.5
    assert changed.recipe.dm.student.betas == base.recipe.dm.student.betas
    assert changed.recipe.adm == base.recipe.adm
    assert changed.variants == base.variants


def test_variants_are_replaced_whole(tmp_path: Path) -> None:
    changed = load(PARAMS, [overlay(tmp_path, {"variants": {"msd4": {"students": 2}}})])
    assert changed.variants == {"msd4": StudentVariant(students=2)}


def test_block_of_another_source_is_replaced_whole(tmp_path: Path) -> None:
    file = overlay(tmp_path, {"teacher": {"source": "url", "url": "file:///teacher", "sha256": "0" * 64}})
    assert load(PARAMS, [file]).teacher == config.UrlSource(source="url", url="file:///teacher", sha256="0" * 64)
    same = overlay(tmp_path, {"teacher": {"source": "file", "path": "elsewhere"}})
    assert load(PARAMS, [same]).teacher.sha256 == load(PARAMS).teacher.sha256  # the same source: key by key


def test_partition_of_another_kind_is_replaced_whole(tmp_path: Path) -> None:
    base = overlay(tmp_path, {"variants": {"a": {"students": 2, "partition": {"kind": "random", "seed": 3}}}})
    assert load(PARAMS, [base], ["variants.a={students: 2}"]).variants["a"].partition == config.Consecutive()


def test_null_removes_an_optional_block() -> None:
    assert load(PARAMS).recipe.dm.regression is not None
    assert load(PARAMS, (), ["recipe.dm.regression=null"]).recipe.dm.regression is None


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E+0", 2.0), ("3.e-2", 0.03), ("0.5", 0.5), ("1", 1.0)])
def test_exponents_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    key = "recipe.dm.student.learning_rate"
    assert load(PARAMS, (), [f"{key}={text}"]).recipe.dm.student.learning_rate == value
    file = overlay(tmp_path, f"recipe: {{dm: {{student: {{learning_rate: {text}}}}}}}")
    assert load(PARAMS, [file]).recipe.dm.student.learning_rate == value


def test_digits_with_letters_stay_text(tmp_path: Path) -> None:
    """A digest such as 12e4… must not become a number."""
    file = overlay(tmp_path, "teacher: {path: 12e4a}")
    assert load(PARAMS, [file]).teacher.path == "12e4a"


@pytest.mark.parametrize("setting", ["recipe.dm.images", "=3", "recipe.dm.images=[1"])
def test_setting_that_is_none(setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(PARAMS, (), [setting])
    assert refused.value.where == setting


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as missing:
        load(PARAMS, [tmp_path / "nowhere.yaml"])
    assert "nowhere.yaml" in missing.value.where


@pytest.mark.parametrize("content", ["recipe: [", "just text", "- a list"])
def test_file_that_is_no_mapping(content: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(PARAMS, [overlay(tmp_path, content)])
    assert "overlay.yaml" in refused.value.where


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    assert load(PARAMS, [overlay(tmp_path, "# nothing\n")]) == load(PARAMS)


def test_every_shipped_overlay_loads() -> None:
    recipes = sorted(set((ROOT / "experiments").glob("*.yaml")) - {ROOT / "experiments/toy2d.yaml"})
    names = [load(PARAMS, [recipe]).experiment for recipe in recipes]
    assert recipes
    assert len(set(names)) == len(names)  # no two write to the same folder
