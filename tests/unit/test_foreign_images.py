"""Images that were made elsewhere, from folders, zips and npz files, go through the protocol of a row of the table."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT
from tiny_clip import NAME, write_clip

from msd.cli.main import main
from msd.config import ClipScore, load
from msd.data.archive import open_half
from msd.data.images import Shaping, arrays, image_of
from msd.errors import ConfigError, DataError, MissingFileError
from msd.evaluate.clip_score import open_clip_model
from msd.evaluate.features import open_extractor
from msd.evaluate.images import evaluate_images
from msd.evaluate.metrics import statistics_of
from msd.evaluate.protocol import at_resolution, batches, protocol_digest
from msd.evaluate.reference import content_of, open_images
from msd.plan import Plan
from msd.store import Manifest, sha256_file

COUNT = 60
ALL = f"evaluation.protocol.images={COUNT}"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with the data prepared and some of them as files of each kind."""
    place = tmp_path_factory.mktemp("place")
    for name in ("params.yaml", "protocols", "experiments", "resources"):
        (place / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["data"]) == 0
        half = open_half(Manifest.read(plan().data.manifest), "train")
    images = half.images[:: len(half.images) // COUNT][:COUNT]
    np.savez(place / "images.npz", images=images)
    (place / "folder").mkdir()
    with zipfile.ZipFile(place / "images.zip", "w") as archive:
        for i, image in enumerate(images):
            path = place / "folder" / f"{i:03d}.png"
            image_of(image).save(path)
            archive.write(path, path.name)
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def plan(*overrides: str) -> Plan:
    return Plan(load("params.yaml", (), [ALL, *overrides]))


def measured(path: str, *overrides: str, reference: str | None = None) -> dict[str, Any]:
    where = Path(reference) if reference else None
    return evaluate_images(Path(path), plan(*overrides), where, CPU, lambda *_: None)


def test_folder_zip_and_npz_of_the_same_images_measure_the_same(tmp_path: Path) -> None:
    folder, archive, array = (measured(path) for path in ("folder", "images.zip", "images.npz"))
    assert folder["images"].pop("path") == "folder"
    for other in (archive, array):
        assert other["images"].pop("path") != "folder"
        assert other == folder
    assert 0 < folder["metrics"]["fd_digits"] < 60
    assert folder["metrics"]["precision"] > 0.5
    assert folder["protocol_digest"] == protocol_digest(plan().experiment.evaluation.protocol)
    assert folder["metric"]["protocol"] == folder["protocol_digest"]


def test_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = ["evaluate", "--images", "folder", "--protocol", "protocols/fd_digits.yaml", "--out", str(out)]
    assert main(arguments) == ConfigError.exit_code  # the protocol is for more images
    assert not out.exists()
    capsys.readouterr()
    assert main([*arguments, "--config", ALL]) == 0
    found = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert found["protocol_digest"][:8] in shown
    for name, value in found["metrics"].items():
        assert name in shown
        assert f"{value:.6g}" in shown


def test_another_number_of_images_is_another_protocol() -> None:
    with pytest.raises(ConfigError, match="there are 60"):
        measured("folder", "evaluation.protocol.images=50")
    with pytest.raises(ConfigError, match="there are 60"):
        measured("folder", "evaluation.protocol.images=30")
    blocks = measured("folder", "evaluation.protocol={images: 30, blocks: 3}")
    assert [len(blocks["blocks"]), blocks["metric"]["blocks"]] == [2, 2]
    each = [block["fd_digits"] for block in blocks["blocks"]]
    assert blocks["metrics"]["fd_digits_minimum"] == min(each)
    assert blocks["metrics"]["fd_digits"] == pytest.approx(np.mean(each))


def test_references_of_ones_own(tmp_path: Path) -> None:
    itself = measured("folder", reference="images.npz")
    assert abs(itself["metrics"]["fd_digits"]) < 1e-3
    assert itself["metrics"]["precision"] == itself["metrics"]["recall"] == 1
    images = np.load("images.npz")["images"]
    weights = Path("resources/metrics/digits-features.safetensors")
    extractor = open_extractor(weights, {"source": "file"}, "tensorflow", CPU)
    statistics_of(extractor.all_of(batches(images))).save(tmp_path / "statistics.npz")
    by_statistics = measured("folder", reference=str(tmp_path / "statistics.npz"))
    assert by_statistics["metrics"] == {"fd_digits": pytest.approx(itself["metrics"]["fd_digits"], abs=1e-9)}
    own = measured("folder")["metrics"]
    assert own["fd_digits"] > 1
    assert measured("folder", reference="images.zip")["metrics"] == itself["metrics"]


def test_pictures_of_other_sizes_are_cut_and_resized_on_both_sides(tmp_path: Path) -> None:
    """As the COCO protocol does, here to the 28 pixels that the classifier knows."""
    images = np.load("images.npz")["images"]
    for name, size in (("wide", (80, 56)), ("high", (56, 70))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            canvas = Image.new("L", size)
            big = image_of(image).resize((56, 56), Image.Resampling.NEAREST)
            canvas.paste(big, ((size[0] - 56) // 2, (size[1] - 56) // 2))
            canvas.save(tmp_path / name / f"{i:03d}.png")
    cut = "evaluation.protocol.resolution=28"
    with pytest.raises(DataError, match="shape"):
        measured(str(tmp_path / "wide"))
    found = measured(str(tmp_path / "wide"), cut, reference=str(tmp_path / "high"))
    assert abs(found["metrics"]["fd_digits"]) < 1e-3
    assert found["images"]["count"] == COUNT
    assert measured(str(tmp_path / "wide"), cut, reference="folder")["metrics"]["fd_digits"] > 0.1


def test_a_second_feature_space_has_metrics_of_its_own(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.AvgPool2d(7), torch.nn.Flatten())
    torch.jit.trace(net, torch.zeros(1, 3, 28, 28)).save(str(tmp_path / "pool.pt"))
    source = (
        f"{{source: torchscript, path: {tmp_path / 'pool.pt'}, sha256: {sha256_file(tmp_path / 'pool.pt')}, size: 28}}"
    )
    # networks of others want colour, our classifier of digits wants grey
    both = measured("folder", f"evaluation.protocol={{name: fd_pool, features: {source}, kid_subset: 20}}")
    assert {"fd_pool", "precision", "recall", "kid"} == set(both["metrics"])
    second = f"{{name: fd_again, features: {source}}}"
    found = measured("folder", f"evaluation.protocol={{name: fd_pool, features: {source}, second: {second}}}")
    assert found["metrics"]["fd_again"] == found["metrics"]["fd_pool"] == both["metrics"]["fd_pool"]
    assert found["metrics"]["recall_fd_again"] == found["metrics"]["recall"]
    assert found["metric"]["second_features_sha256"] == sha256_file(tmp_path / "pool.pt")


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingFileError, match="not trained"):
        measured("folder", "evaluation.protocol=protocols/fd_cifar10.yaml", ALL)
    with pytest.raises(MissingFileError, match="do not exist"):
        measured("nowhere")
    with pytest.raises(MissingFileError, match="not prepared"):
        measured("folder", "experiment=other")
    assert main(["evaluate", "--reference", "folder"]) == ConfigError.exit_code
    assert "--images" in capsys.readouterr().err


def test_clip_score_beside_the_distance(tmp_path: Path) -> None:
    """Image i, in the order of names, belongs to line i of the captions."""
    weights = write_clip(tmp_path)
    clip = ClipScore(model=NAME, pretrained=str(weights), sha256=sha256_file(weights))
    captions = [f"{i} pictures of {'a digit' if i % 2 else 'cats on a beach'} " for i in range(COUNT)]
    (tmp_path / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    asked = f"{{path: {tmp_path / 'captions.txt'}, sha256: {sha256_file(tmp_path / 'captions.txt')}}}"
    overrides = [
        f"evaluation.protocol.captions={asked}",
        f"evaluation.protocol.clip={{model: {NAME}, pretrained: {weights}, sha256: {clip.sha256}}}",
    ]
    out = tmp_path / "out.json"
    arguments = ["evaluate", "--images", "folder", "--protocol", "protocols/fd_digits.yaml", "--out", str(out)]
    assert main([*arguments, *(word for o in [ALL, *overrides] for word in ("--config", o))]) == 0
    found = json.loads(out.read_text())
    score = open_clip_model(clip, CPU)
    images = np.load("images.npz")["images"]
    assert found["metrics"]["clip_score"] == pytest.approx(score(images, captions) / COUNT, rel=1e-5)
    assert found["metrics"]["clip_score"] != pytest.approx(score(images, captions[::-1]) / COUNT, rel=1e-2)
    without = measured("folder")
    assert found["metrics"]["fd_digits"] == without["metrics"]["fd_digits"]
    assert found["protocol_digest"] != without["protocol_digest"]


def test_clip_score_without_its_weights_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_text("a digit\n" * COUNT)
    overrides = [
        f"evaluation.protocol.captions={{path: {tmp_path / 'captions.txt'}}}",
        f"evaluation.protocol.clip={{model: ViT-B-32, pretrained: {tmp_path / 'none.safetensors'}}}",
    ]
    arguments = ["evaluate", "--images", "folder", *(word for o in [ALL, *overrides] for word in ("--config", o))]
    assert main(arguments) == MissingFileError.exit_code
    message = capsys.readouterr().err
    assert message.startswith("msd: MissingFileError: The weights for the CLIP score do not exist.")
    assert str(tmp_path / "none.safetensors") in message


def test_weights_from_elsewhere_are_a_row(place: Path) -> None:
    """A teacher's file serves as a student of one step; what it draws at once is far from digits."""
    row = "variants={mine: {model: weights, path: resources/teachers/mnist.safetensors}}"
    changed = ["--config", row, "--config", "evaluation.protocol.images=40", "--config", "evaluation.gallery_columns=2"]
    made = Plan(load("params.yaml", (), changed[1::2]))
    for node in (made.features, made.judge):
        assert main(["classifier", str(node.manifest), *changed]) == 0
    variant = made.variant("mine")
    assert main(["bundle", "mine", str(variant.bundle.manifest.parent), *changed]) == 0
    assert main(["evaluate", "--variant", "mine", *changed]) == 0
    results = Manifest.read(variant.evaluation.manifest).results
    assert results["metric"]["protocol"] == protocol_digest(made.experiment.evaluation.protocol)
    assert results["nfe"] == 1
    assert results["metrics"]["fd_digits"] > 10
    assert np.load(variant.evaluation.manifest.parent / "gallery.npy").shape == (10, 2, 1, 28, 28)


def test_images_in_memory_come_to_a_resolution_as_those_in_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 20, 20), dtype=np.uint8)
    for i, image in enumerate(images):
        image_of(image).save(tmp_path / f"{i}.png")
    in_files = np.stack(list(arrays(open_images(tmp_path), Shaping(resolution=8))))
    assert np.array_equal(at_resolution(images, 8), in_files)
    assert at_resolution(images, None) is images


def test_a_reference_behind_a_link_is_known_by_its_pictures(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / f"{name}-pictures").mkdir()
        (tmp_path / f"{name}-pictures/0.png").write_text(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").symlink_to(tmp_path / f"{name}-pictures")
    assert content_of(tmp_path / "one") != content_of(tmp_path / "other")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "one")
