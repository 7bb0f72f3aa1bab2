"""Data sets at official addresses: formats, their own test images, a mirror folder in place of the network."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from msd.config import WITHOUT_PATH, Data
from msd.data import online
from msd.data.images import arrays
from msd.data.online import CIFAR_BATCHES, CIFAR_CLASSES, CIFAR_SHAPE, cifar_binary
from msd.data.prepare import prepare
from msd.data.sources import SOURCES
from msd.errors import DamagedFileError, DownloadError
from msd.store import sha256_file

PER_BATCH = 20


def write_cifar(path: Path, leave_out: str = "", cut: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small tar file of the binary version; half → images and labels."""
    rng, made = np.random.default_rng(0), {}
    with tarfile.open(path, "w:gz") as archive:
        for half, batches in CIFAR_BATCHES.items():
            count = PER_BATCH * len(batches)
            images = rng.integers(0, 256, (count, *CIFAR_SHAPE), dtype=np.uint8)
            labels = np.arange(count) % 10
            made[half] = images, labels
            records = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
            for k, batch in enumerate(batches):
                content = b"".join(records[k * PER_BATCH : (k + 1) * PER_BATCH])
                content = content[: len(content) - cut]
                if batch != leave_out:
                    member = tarfile.TarInfo(f"cifar-10-batches-bin/{batch}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return made


@pytest.mark.parametrize("half", ["train", "test"])
def test_binary_version_of_cifar10(half: str, tmp_path: Path) -> None:
    images, labels = write_cifar(tmp_path / "c.tar.gz")[half]
    source = cifar_binary(tmp_path / "c.tar.gz", half)
    assert (len(source), source.num_classes, source.class_names) == (len(labels), 10, CIFAR_CLASSES)
    assert np.array_equal(source.labels, labels)
    assert np.array_equal(np.stack(list(arrays(source))), images)


def test_damaged_tar_files(tmp_path: Path) -> None:
    write_cifar(tmp_path / "short.tar.gz", cut=7)
    with pytest.raises(DamagedFileError, match="ends early"):
        cifar_binary(tmp_path / "short.tar.gz", "train")
    write_cifar(tmp_path / "less.tar.gz", leave_out="data_batch_3.bin")
    with pytest.raises(DamagedFileError, match="missing"):
        cifar_binary(tmp_path / "less.tar.gz", "train")
    whole = tmp_path / "whole.tar.gz"
    write_cifar(whole)
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(DamagedFileError, match="cannot be read"):
        cifar_binary(whole, "train")


def test_own_test_images_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a mirror folder, verified by sha256: here the one of a small file of the same format."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    file = mirror / "cifar-10-binary.tar.gz"
    made = write_cifar(file)
    monkeypatch.setenv("MSD_MIRROR", str(mirror))
    monkeypatch.setenv("MSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(online, "CIFAR_SHA256", sha256_file(file))
    manifest = prepare(Data(source="cifar10"), tmp_path / "out" / "manifest.json")
    assert manifest.results["images"] == {"train": 5 * PER_BATCH, "evaluation": PER_BATCH}
    assert np.array_equal(np.load(manifest.file("evaluation-images")), made["test"][0])
    assert np.array_equal(np.load(manifest.file("train-labels")), made["train"][1])
    assert manifest.results["class_names"] == list(CIFAR_CLASSES)


def test_another_file_under_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-binary.tar.gz")
    monkeypatch.setenv("MSD_MIRROR", str(tmp_path))
    monkeypatch.setenv("MSD_CACHE", str(tmp_path / "cache"))
    with pytest.raises((DamagedFileError, DownloadError), match=r"sha256|digest|damaged"):
        prepare(Data(source="cifar10"), tmp_path / "out" / "manifest.json")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_sources_without_a_path_are_those_of_the_configuration() -> None:
    assert set(WITHOUT_PATH) < SOURCES.keys()
    with pytest.raises(ValueError, match="has no path"):
        Data(source="cifar10", path="somewhere")
    with pytest.raises(ValueError, match="no evaluation_path"):
        Data(source="cifar10", evaluation_path="somewhere")
