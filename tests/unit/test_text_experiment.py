"""An experiment of text to image: its configuration, its plan, its captions, and work in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ROOT

from msd.config import load
from msd.errors import ConfigError, InterruptedRun
from msd.plan import Plan
from msd.shards import Shards
from msd.store import Manifest, read_json, write_text
from msd.text.captions import caption_images

RECIPE = ROOT / "experiments/tiny-t2i.yaml"
CAPTIONS: dict[str, Any] = {"names": ["cat", "dog"], "templates": ["a {}", "one {} on grass", "the {}"]}


def data(folder: Path, **results: Any) -> Path:
    """A prepared data set of 20 images of two classes in each half."""
    files = {}
    for half in ("train", "evaluation"):
        for name, array in (("images", np.zeros((20, 1, 4, 4), np.uint8)), ("labels", np.arange(20) % 2)):
            files[f"{half}-{name}"] = folder / f"{half}-{name}.npy"
            folder.mkdir(exist_ok=True)
            np.save(files[f"{half}-{name}"], array)
    about = {"sha256": "0", "num_classes": 2, "image_shape": [1, 4, 4], "images": {"train": 20, "evaluation": 20}}
    path = folder / "manifest.json"
    Manifest.write(path, kind="data", settings={}, files=files, results=about | results)
    return path


def problems(*settings: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(ROOT / "params.yaml", [RECIPE], settings)
    return refused.value.why


def test_images_are_labelled_by_their_captions(tmp_path: Path) -> None:
    manifest = caption_images(tmp_path / "out/manifest.json", CAPTIONS, {"data": data(tmp_path / "data")})
    prompts, class_of = manifest.results["class_names"], manifest.results["class_of"]
    assert prompts[:4] == ["a cat", "one cat on grass", "the cat", "a dog"]
    rows = np.load(manifest.file("train-labels"))
    assert [class_of[row] for row in rows] == [0, 1] * 10
    assert len(set(rows.tolist())) > 2  # several templates of each class
    again = caption_images(tmp_path / "again/manifest.json", CAPTIONS, {"data": data(tmp_path / "data")})
    assert again.sha256("train-labels") == manifest.sha256("train-labels")
    assert manifest.file("train-images") == tmp_path / "data/train-images.npy"  # not copied


def test_the_names_of_the_data_are_taken_where_none_are_given(tmp_path: Path) -> None:
    named = data(tmp_path / "data", class_names=["owl", "newt"])
    manifest = caption_images(tmp_path / "out/manifest.json", {"templates": ["a {}"]}, {"data": named})
    assert manifest.results["class_names"] == ["a owl", "a newt"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"names": ["cat"]}, "1 names for 2 classes"), ({"names": ["cat", " cat "]}, "Captions are alike")],
)
def test_captions_that_do_not_fit_are_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        caption_images(tmp_path / "out/manifest.json", CAPTIONS | changes, {"data": data(tmp_path / "data")})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["variants={single: {students: 1, network: small}}"],
            "networks.small: architecture unet2d goes with the section `text`",
        ),
        (
            ["variants={msd4: {students: 4, partition: {kind: kmeans}}}"],
            "kind kmeans is for classes, text-kmeans for prompts",
        ),
        (["text=null"], "kind quadrants splits prompts"),
        (["text=null"], "teacher.network: architecture unet2d goes with the section `text`"),
        (["text.captions.templates=[a cat]"], "must hold {} once"),
        (["recipe.dm.regression={batch_size: 8}"], "the regression loss is for classes"),
        (["teacher={source: known, name: edm-imagenet-64x64-cond-adm}"], "goes with the section `text`"),
    ],
)
def test_what_does_not_go_together_is_told(settings: list[str], expected: str) -> None:
    assert expected in problems(*settings)


def test_students_read_latents_and_captions() -> None:
    plan = Plan(load(ROOT / "params.yaml", [RECIPE]))
    assert plan.text is not None
    student = plan.variants["msd4"].students[3].stages[0]
    assert student.inputs["data"] == plan.text.latents
    assert student.inputs["embeddings"] == plan.text.embeddings
    assert plan.variants["msd4"].evaluation.inputs["data"] == plan.text.captions
    assert plan.judge is not None
    assert plan.judge.inputs in ({}, {"data": plan.data})  # a classifier that is trained sees classes


def test_shards_go_on_where_they_stopped(tmp_path: Path) -> None:
    written: list[int] = []

    def write(path: Path, first: int, number: int) -> dict[str, int]:
        written.append(first)
        write_text(path, f"{first} {number}")
        return {"items": number}

    def shards(identity: str = "a") -> Shards:
        return Shards(tmp_path, "part", ".txt", count=10, size=4, identity=identity)

    with pytest.raises(InterruptedRun, match="4 of 10 things are done"):
        shards().fill(write, what="things are done", stop=lambda: "a signal")
    shards().fill(write, what="things are done")
    assert written == [0, 4, 8]
    assert shards().total("items") == 10
    assert list(shards().files) == ["part-000000000", "part-000000004", "part-000000008"]
    (tmp_path / "part-000000004.txt").write_text("damaged")
    shards().fill(write, what="things are done")
    assert written == [0, 4, 8, 4]
    shards("b").fill(write, what="things are done")  # another identity: all anew
    assert written == [0, 4, 8, 4, 0, 4, 8]
    assert read_json(tmp_path / "part-000000008.json")["items"] == 2
