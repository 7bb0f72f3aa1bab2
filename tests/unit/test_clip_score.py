"""The CLIP score by a small real model of open_clip: against a computation by hand, and what goes wrong."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny import ROOT
from tiny_clip import CONTEXT, NAME, write_clip

from msd.config import Captions, ClipScore, load
from msd.data.archive import LabelledImages
from msd.data.images import image_of
from msd.errors import (
    ConfigError,
    DamagedFileError,
    DataError,
    DownloadError,
    MissingFileError,
    MsdError,
    UnsafeFileError,
)
from msd.evaluate.clip_score import open_clip_model
from msd.store import sha256_file
from msd.text.measured import read_captions

CPU = torch.device("cpu")
COUNT = 12
CAPTIONS = [f"{i} {what}" for what in ("cats", "digits in red", "dogs on a beach") for i in ("no", "two", "9", "all")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def settings(weights: Path) -> ClipScore:
    return ClipScore(model=NAME, pretrained=str(weights), sha256=sha256_file(weights))


@pytest.fixture(scope="module")
def images(real: LabelledImages) -> NDArray[np.uint8]:
    """Digits in three colours, (COUNT, 3, 28, 28)."""
    rows = real.images[:: len(real.images) // COUNT][:COUNT]
    return np.concatenate([rows, 255 - rows, rows[::-1]], axis=1)


@pytest.fixture(scope="module")
def cosines(weights: Path, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """By open_clip's own functions, one at a time: images by captions, (COUNT, COUNT)."""
    import open_clip

    net, transform = open_clip.create_model_from_pretrained(NAME, str(weights))
    tokenize = open_clip.get_tokenizer(NAME)
    with torch.no_grad():
        seen = torch.cat([net.eval().encode_image(transform(image_of(image))[None]) for image in images])
        said = torch.cat([net.encode_text(tokenize([caption])) for caption in CAPTIONS])
    return torch.cosine_similarity(seen[:, None].double(), said[None].double(), dim=2).numpy()


def test_score_is_100_times_the_positive_part_of_the_cosine(
    settings: ClipScore, images: NDArray[np.uint8], cosines: NDArray[np.float64]
) -> None:
    score = open_clip_model(settings, CPU)
    own = cosines.diagonal()
    assert (own < 0).any()  # so that max(…, 0) matters
    assert (own > 0).any()
    assert score(images, CAPTIONS) == pytest.approx(100 * np.maximum(own, 0).sum(), rel=1e-4)
    for image in (int(own.argmin()), int(own.argmax())):
        alone = score(images[image : image + 1], CAPTIONS[image : image + 1])
        assert alone == pytest.approx(100 * max(own[image], 0), rel=1e-4)


def test_order_of_captions_counts_and_batches_do_not(
    settings: ClipScore, images: NDArray[np.uint8], cosines: NDArray[np.float64]
) -> None:
    score = open_clip_model(settings, CPU)
    whole = score(images, CAPTIONS)
    parts = sum(score(images[rows], CAPTIONS[rows]) for rows in (slice(0, 5), slice(5, 6), slice(6, COUNT)))
    assert parts == pytest.approx(whole, rel=1e-5)
    turned = score(images, CAPTIONS[1:] + CAPTIONS[:1])
    assert turned == pytest.approx(100 * np.maximum(np.roll(cosines, -1, axis=1).diagonal(), 0).sum(), rel=1e-4)
    assert abs(turned - whole) > 1


def test_grey_images_are_made_colour(settings: ClipScore, real: LabelledImages) -> None:
    score = open_clip_model(settings, CPU)
    grey = real.images[:COUNT]
    assert score(grey, CAPTIONS) == score(np.repeat(grey, 3, axis=1), CAPTIONS) > 0


def test_long_captions_are_cut(settings: ClipScore, images: NDArray[np.uint8]) -> None:
    score = open_clip_model(settings, CPU)
    words = ["a", "red", "dog", "sits", "on", "a", "beach", "near", "two", "cats"]
    assert len(words) == CONTEXT - 2  # with the start and the end they fit exactly

    def of(caption: list[str]) -> float:
        return score(images[:4], [" ".join(caption)] * 4)

    assert of(words) == of([*words, "dog"]) == of(words + words * 40)
    assert of(words) != of(words[:-2])
    assert of(words) != of(words[::-1])


def test_safetensors_are_read_too(
    settings: ClipScore, weights: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    save_file(torch.load(weights, weights_only=True), tmp_path / "clip.safetensors")
    again = ClipScore(model=NAME, pretrained=str(tmp_path / "clip.safetensors"))
    assert open_clip_model(again, CPU)(images, CAPTIONS) == open_clip_model(settings, CPU)(images, CAPTIONS)


class _Runs:
    """What a pickle can do to its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickle_that_would_run_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": _Runs(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(UnsafeFileError, match="nothing of the file was run"):
        open_clip_model(ClipScore(model=NAME, pretrained=str(tmp_path / "evil.pt")), CPU)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_wrong(weights: Path, tmp_path: Path) -> None:
    def refused(error: type[MsdError], path: Path, sha256: str | None = None) -> MsdError:
        with pytest.raises(error) as caught:
            open_clip_model(ClipScore(model=NAME, pretrained=str(path), sha256=sha256), CPU)
        assert caught.value.where.startswith(str(path))
        return caught.value

    assert "open_clip.list_pretrained" in refused(MissingFileError, tmp_path / "none.pt").todo
    refused(DamagedFileError, weights, "0" * 64)
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 100)
    refused(DamagedFileError, tmp_path / "cut.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    assert "Missing key" in refused(DamagedFileError, tmp_path / "other.pt").why
    with pytest.raises(ConfigError, match="no model 'ViT-g'"):
        open_clip_model(ClipScore(model="ViT-g"), CPU)


def test_without_network_there_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MSD_CACHE", str(tmp_path))
    with caplog.at_level(logging.DEBUG), pytest.raises(DownloadError) as error:
        open_clip_model(ClipScore(), CPU)
    assert error.value.where == "ViT-g-14, laion2b_s12b_b42k"
    assert "evaluation.protocol.clip.pretrained" in error.value.todo
    assert not caplog.records
    logging.getLogger("msd").warning("heard again")
    assert len(caplog.records) == 1


def test_without_open_clip_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as `import` finds it where it is not installed
    with pytest.raises(MissingFileError, match=r"pip install 'msd\[clip\]'"):
        open_clip_model(ClipScore(), CPU)


def test_nothing_asks_for_a_clip_score_by_default() -> None:
    protocol = load(ROOT / "params.yaml", (), ["evaluation.protocol=protocols/fid_coco30k.yaml"]).evaluation.protocol
    assert protocol.clip is None


def test_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\na dog\n")
    assert read_captions(Captions(path=str(path)), 2) == ["a cat", "a dog"]
    assert read_captions(Captions(path=str(path), sha256=sha256_file(path)), 1) == ["a cat"]
    with pytest.raises(DataError, match="2 for 3"):
        read_captions(Captions(path=str(path)), 3)
    with pytest.raises(DamagedFileError):
        read_captions(Captions(path=str(path), sha256="0" * 64), 1)
    with pytest.raises(MissingFileError):
        read_captions(Captions(path=str(tmp_path / "none.txt")), 1)
