"""Every source gives the same images; whatever is wrong is one error that names the first bad file, member or index."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import lmdb
import numpy as np
import pytest
import yaml
from image_files import FORMATS, png, some_images, write_folder, write_idx, write_lmdb, write_npz, write_zip
from tiny import ROOT

from msd.config import WITHOUT_PATH, Data, DataSource
from msd.data.images import arrays
from msd.data.prepare import prepare
from msd.data.sources import SOURCES, open_source, recognise
from msd.errors import DamagedFileError, DataError, MissingFileError, MsdError
from msd.store import Manifest

IMAGES, LABELS = some_images()
GREY, GREY_LABELS = some_images(channels=1)
CONTENT = hashlib.sha256(IMAGES.tobytes() + LABELS.tobytes()).hexdigest()


def read(kind: str, path: Path, classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    source = open_source(kind, path, classes)
    return np.stack(list(arrays(source))), source.labels


def refusal(error: type[MsdError], kind: str, path: Path, classes: int | None = None) -> str:
    """The message of the error that reading must end with."""
    with pytest.raises(error) as refused:
        read(kind, path, classes)
    return str(refused.value)


# --- what is read ---


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_images_labels_and_digest(form: str, tmp_path: Path) -> None:
    kind, name, write = FORMATS[form]
    path = write(tmp_path / name, IMAGES, LABELS)
    assert recognise(str(path)) == kind
    images, labels = read(kind, path)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    manifest = prepare(Data(source=kind, path=str(path), sha256=CONTENT), tmp_path / "out/manifest.json")
    assert manifest.results["sha256"] == CONTENT
    assert manifest.results["num_classes"] == 3
    assert manifest.results["image_shape"] == [3, 8, 8]


@pytest.mark.parametrize("form", FORMATS)
def test_grey_images_have_one_channel(form: str, tmp_path: Path) -> None:
    kind, name, write = FORMATS[form]
    assert np.array_equal(read(kind, write(tmp_path / name, GREY, GREY_LABELS))[0], GREY)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(zipped: bool, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "mnist", GREY, GREY_LABELS, zipped)
    file = folder / ("train-images-idx3-ubyte.gz" if zipped else "train-images-idx3-ubyte")
    for path in (folder, file):
        assert recognise(str(path)) == "idx"
        images, labels = read("idx", path)
        assert np.array_equal(images, GREY)
        assert np.array_equal(labels, GREY_LABELS)


def test_npz_with_two_axes_is_grey(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY[:, 0], labels=GREY_LABELS)
    assert np.array_equal(read("npz", tmp_path / "a.npz")[0], GREY)


def test_class_ids_follow_the_sorted_folder_names(tmp_path: Path) -> None:
    for name in ("n02", "n01", "n10"):  # made in another order
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png(np.full((1, 4, 4), int(name[1:]), np.uint8)))
    (tmp_path / "readme.txt").write_text("not a picture")
    source = open_source("folder", tmp_path)
    assert source.class_names == ("n01", "n02", "n10")
    assert [(image[0, 0, 0], label) for image, label in zip(arrays(source), source.labels, strict=True)] == [
        (1, 0),
        (2, 1),
        (10, 2),
    ]


def test_real_cifar_zip(shared: Path) -> None:
    """The first images of the real test set, whose classes are known: cat, ship, ship, airplane, frog."""
    source = open_source("edm-zip", shared / "data/cifar10-test.zip").first(5)
    assert source.num_classes == 10
    assert source.labels.tolist() == [3, 8, 8, 0, 6]
    assert {image.shape for image in arrays(source)} == {(3, 32, 32)}


def test_configuration_and_the_page_name_the_sources_of_the_registry() -> None:
    examples = re.findall(r"`(\{source: .*?\})`", (ROOT / "docs/data.md").read_text())
    shown = [Data.model_validate(yaml.safe_load(example)).source for example in examples]
    assert shown == list(get_args(DataSource)) == list(SOURCES)


# --- halves ---


def test_halves_of_a_share_are_split_within_classes(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", IMAGES, LABELS)
    settings = Data(source="edm-zip", path=str(path), evaluation_share=0.25)
    manifest = prepare(settings, tmp_path / "out/manifest.json")
    assert manifest.results["images"] == {"train": 18, "evaluation": 6}
    assert np.bincount(np.load(manifest.file("evaluation-labels"))).tolist() == [2, 2, 2]
    train, held_out = (np.load(manifest.file(f"{half}-images")) for half in ("train", "evaluation"))
    assert {i.tobytes() for i in train} | {i.tobytes() for i in held_out} == {i.tobytes() for i in IMAGES}


def test_evaluation_images_of_their_own(tmp_path: Path) -> None:
    held_out, labels = some_images(9)
    train = write_folder(tmp_path / "train", IMAGES, LABELS)
    val = write_folder(tmp_path / "val", held_out, labels)
    settings = Data(source="folder", path=str(train), evaluation_path=str(val))
    manifest = prepare(settings, tmp_path / "out/manifest.json")
    assert manifest.results["images"] == {"train": 24, "evaluation": 9}
    assert np.array_equal(np.load(manifest.file("train-images")), IMAGES)
    assert np.array_equal(np.load(manifest.file("evaluation-images")), held_out)
    assert manifest.results["class_names"] == ["n00000000", "n00000001", "n00000002"]
    assert manifest.results["sha256"] != CONTENT

    shutil.rmtree(val / "n00000001")  # the ids of the classes behind it would move
    with pytest.raises(DataError, match="n00000001"):
        prepare(settings, tmp_path / "again/manifest.json")


def test_evaluation_images_of_another_shape(tmp_path: Path) -> None:
    train = write_npz(tmp_path / "train.npz", IMAGES, LABELS)
    val = write_npz(tmp_path / "val.npz", GREY, GREY_LABELS)
    with pytest.raises(DataError, match="training images' shape"):
        prepare(Data(source="npz", path=str(train), evaluation_path=str(val)), tmp_path / "out/manifest.json")
    assert not (tmp_path / "out/manifest.json").exists()


def test_other_content_than_the_expected_leaves_nothing(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", IMAGES, LABELS)
    settings = Data(source="npz", path=str(path), sha256=hashlib.sha256().hexdigest())
    with pytest.raises(DamagedFileError, match=CONTENT):
        prepare(settings, tmp_path / "out/manifest.json")
    assert list((tmp_path / "out").iterdir()) == []


# --- what is refused ---


def test_missing_path(tmp_path: Path) -> None:
    for kind in SOURCES.keys() - set(WITHOUT_PATH):
        assert "nowhere" in refusal(MissingFileError, kind, tmp_path / "nowhere")


def test_images_without_labels_need_one_class(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", IMAGES, None)
    assert "classes: 1" in refusal(DataError, "edm-zip", path)
    images, labels = read("edm-zip", path, classes=1)
    assert np.array_equal(images, IMAGES)
    assert labels.tolist() == [0] * 24


@pytest.mark.parametrize(("label", "classes"), [(-2, None), (24, None), (3, 3)])
def test_label_out_of_range_is_named(label: int, classes: int | None, tmp_path: Path) -> None:
    wrong = LABELS.copy()
    wrong[[5, 9]] = label
    error = refusal(DataError, "npz", write_npz(tmp_path / "a.npz", IMAGES, wrong), classes)
    assert f"out of range: {label}" in error
    assert "image 5" in error
    assert "2 of 24" in error


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (png(GREY[0]), "mode L"),
        (png(IMAGES[0], "RGBA"), "mode RGBA"),
        (png(IMAGES[0], "P"), "mode P"),
        (png(IMAGES[0][:, :, :7]), "7×8 pixels"),
    ],
    ids=["grey", "alpha", "palette", "narrow"],
)
def test_first_odd_picture_is_named(picture: bytes, problem: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, IMAGES, LABELS)
    for bad in ("n00000001/00011.png", "n00000002/00020.png"):
        (folder / bad).write_bytes(picture)
    error = refusal(DataError, "folder", folder)
    assert problem in error
    assert "n00000001/00011.png" in error


@pytest.mark.parametrize("content", [b"", b"no picture", png(IMAGES[0])[:60]], ids=["empty", "text", "cut"])
def test_damaged_picture_is_named(content: bytes, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, IMAGES, LABELS)
    (folder / "n00000001/00011.png").write_bytes(content)
    assert "n00000001/00011.png" in refusal(DamagedFileError, "folder", folder)


def test_picture_that_would_unpack_to_too_many_pixels(tmp_path: Path) -> None:
    header = bytearray(png(GREY[0]))
    header[16:24] = np.array([60000, 60000], ">u4").tobytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/bomb.png").write_bytes(header)
    assert "bomb.png" in refusal(DamagedFileError, "folder", tmp_path)


def test_empty_class_folder(tmp_path: Path) -> None:
    (write_folder(tmp_path, IMAGES, LABELS) / "n00000001x").mkdir()
    assert "n00000001x" in refusal(DataError, "folder", tmp_path)


def test_picture_beside_the_class_folders(tmp_path: Path) -> None:
    (write_folder(tmp_path, IMAGES, LABELS) / "stray.png").write_bytes(png(IMAGES[0]))
    assert "stray.png" in refusal(DataError, "folder", tmp_path)


def test_folder_without_pictures(tmp_path: Path) -> None:
    assert "no images" in refusal(DataError, "folder", tmp_path)


def edited(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A data set zip with members replaced or added."""
    original = write_zip(path.with_name("original.zip"), IMAGES, LABELS)
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            if name not in members:
                new.writestr(name, old.read(name))
        for name, content in members.items():
            new.writestr(name, content)
    return path


def entries(change: Callable[[list[list[object]]], None]) -> bytes:
    labels: list[list[object]] = [[f"00000/img{i:08d}.png", int(c)] for i, c in enumerate(LABELS)]
    change(labels)
    return json.dumps({"labels": labels}).encode()


@pytest.mark.parametrize(
    ("content", "error", "problem"),
    [
        (b"{", DamagedFileError, "dataset.json"),
        (b"[]", DamagedFileError, "dataset.json"),
        (b'{"labels": [1]}', DamagedFileError, "dataset.json"),
        (b"[" * 100_000, DamagedFileError, "dataset.json"),
        (entries(lambda x: x.pop(4)), DataError, "img00000004.png"),
        (entries(lambda x: x[4].__setitem__(1, 1.5)), DataError, "img00000004.png"),
        (entries(lambda x: x[4].__setitem__(1, [0, 1])), DataError, "img00000004.png"),
        (entries(lambda x: x.append(["00000/img00000099.png", 1])), DamagedFileError, "img00000099.png"),
    ],
)
def test_bad_labels_of_a_zip(content: bytes, error: type[MsdError], problem: str, tmp_path: Path) -> None:
    assert problem in refusal(error, "edm-zip", edited(tmp_path / "a.zip", {"dataset.json": content}))


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_zip_member_that_points_outside(name: str, tmp_path: Path) -> None:
    assert "evil.png" in refusal(DamagedFileError, "edm-zip", edited(tmp_path / "a.zip", {name: png(IMAGES[0])}))


def test_zip_bomb(tmp_path: Path) -> None:
    path = edited(tmp_path / "a.zip", {"bomb.png": bytes(2**26 + 1)}, zipfile.ZIP_DEFLATED)
    error = refusal(DamagedFileError, "edm-zip", path)
    assert "bomb.png" in error
    assert "would unpack to 67,108,865" in error


def test_labels_of_one_class_pack_well_and_are_no_bomb(tmp_path: Path) -> None:
    images, labels = np.zeros((60_000, 1, 2, 2), np.uint8), np.zeros(60_000, np.int64)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=labels)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert all(m.file_size > 200 * m.compress_size for m in archive.infolist())
    assert len(open_source("npz", tmp_path / "a.npz")) == 60_000
    assert len(open_source("idx", write_idx(tmp_path / "mnist", images, labels))) == 60_000


def test_flipped_byte_in_a_zip_member_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", IMAGES, LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    assert "img00000000.png" in refusal(DamagedFileError, "edm-zip", path)


@pytest.mark.parametrize("at", range(0, 200, 8))
def test_damaged_deflated_picture_is_named(at: int, tmp_path: Path) -> None:
    """Whatever the damage breaks first: the packed stream or its checksum."""
    path = edited(tmp_path / "a.zip", {"00000/img00000000.png": png(IMAGES[0]) + b"text " * 99}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("00000/img00000000.png")
    content = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    content[start + at : start + at + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert "img00000000.png" in refusal(DamagedFileError, "edm-zip", path)


@pytest.mark.parametrize("kind", ["edm-zip", "npz", "lmdb"])
@pytest.mark.parametrize("content", [b"", b"not a database nor a zip file" * 1000], ids=["empty", "text"])
def test_file_of_another_format(kind: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert str(path) in refusal(DamagedFileError, kind, path)


@pytest.mark.parametrize("kind", ["edm-zip", "npz", "lmdb"])
def test_cut_file(kind: str, tmp_path: Path) -> None:
    write = {"edm-zip": write_zip, "npz": write_npz, "lmdb": write_lmdb}[kind]
    path = write(tmp_path / "cut.npz", *some_images(200))
    file = next(path.glob("data.mdb"), path)
    os.truncate(file, file.stat().st_size // 2)
    assert str(path) in refusal(DamagedFileError, kind, path)


def test_bad_rows_of_lmdb_are_named(tmp_path: Path) -> None:
    for key, value in {"images_7_data": b"short", "labels_3_data": None, "images_shape": b"24 3 x 8"}.items():
        path = write_lmdb(tmp_path / key, IMAGES, LABELS)
        with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
            transaction.put(key.encode(), value) if value else transaction.delete(key.encode())
        assert key in refusal(DamagedFileError, "lmdb", path)


def test_lmdb_that_promises_more_rows_than_entries(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "train_lmdb", IMAGES, LABELS)
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"images_shape", b"10000000000000 3 8 8")
    error = refusal(DamagedFileError, "lmdb", path)
    assert "images_shape" in error
    assert "10,000,000,000,000 rows, but 50 entries" in error


@pytest.mark.parametrize("shape", [(10**13, 3, 8, 8), (25, 3, 8, 8), (23, 3, 8, 8), (-24, -8, 24), (10**13, 0, 8, 8)])
@pytest.mark.parametrize("member", ["images", "labels"])
def test_npz_header_that_promises_another_size(member: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    header = {"descr": "|u1" if member == "images" else "<i8", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in (("images", IMAGES), ("labels", LABELS)):
            with archive.open(f"{name}.npy", "w") as f:
                if name == member:
                    np.lib.format.write_array_header_1_0(f, header)
                    f.write(array.tobytes())
                else:
                    np.lib.format.write_array(f, array)
    error = refusal(DamagedFileError, "npz", tmp_path / "a.npz")
    assert f"a.npz: {member}.npy" in error
    assert "promises another size" in error


@pytest.mark.parametrize(
    ("arrays_in_file", "error", "problem"),
    [
        ({"pictures": IMAGES}, DataError, "`images` or `arr_0`"),
        ({"images": IMAGES.astype(np.float32)}, DataError, "float32"),
        ({"images": np.array([{}], dtype=object)}, DataError, "object"),
        ({"images": np.asfortranarray(IMAGES)}, DataError, "Fortran"),
        ({"images": IMAGES[:, :2]}, DataError, "(24, 2, 8, 8)"),
        ({"images": IMAGES[..., :3]}, DataError, "(24, 3, 8, 3)"),
        ({"images": IMAGES, "labels": LABELS[:-1]}, DataError, "(23,)"),
        ({"images": IMAGES, "labels": LABELS / 2}, DataError, "float64"),
        ({"images": IMAGES, "labels": np.array(["a"] * 24, dtype=object)}, DamagedFileError, "labels"),
    ],
)
def test_bad_npz(arrays_in_file: dict[str, np.ndarray], error: type[MsdError], problem: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays_in_file)
    assert problem in refusal(error, "npz", tmp_path / "a.npz")


def changed_idx(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> Path:
    folder = write_idx(path, GREY, GREY_LABELS, zipped=False)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(change(bytearray(file.read_bytes())))
    return folder


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda b: b[:-70], "image 22"),
        (lambda b: b + b"x", "goes on"),
        (lambda b: b[:7], "no idx file"),
        (lambda b: b[:2] + b"\x0d" + b[3:], "00000d03"),
        (lambda b: b[:4] + b"\xff" + b[5:], "promises too much"),
    ],
    ids=["cut", "longer", "header", "floats", "bomb"],
)
def test_bad_idx(change: Callable[[bytearray], bytearray], problem: str, tmp_path: Path) -> None:
    assert problem in refusal(DamagedFileError, "idx", changed_idx(tmp_path / "x", change))


def test_idx_without_its_labels_or_with_too_few(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "x", GREY, GREY_LABELS, zipped=False)
    write_idx(tmp_path / "y", GREY[:5], GREY_LABELS[:5], zipped=False)
    labels = folder / "train-labels-idx1-ubyte"
    shutil.copy(tmp_path / "y" / labels.name, labels)
    assert "there are 24 images" in refusal(DataError, "idx", folder)
    labels.unlink()
    assert "train-labels-idx1-ubyte" in refusal(MissingFileError, "idx", folder)


@pytest.mark.parametrize("content", [b"text", gzip.compress(bytes(100))[:-9]], ids=["text", "cut"])
def test_damaged_gzip(content: bytes, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "x", GREY, GREY_LABELS)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    assert "train-images-idx3-ubyte.gz" in refusal(DamagedFileError, "idx", folder)


def test_manifest_of_something_else_is_no_archive(digits: Manifest) -> None:
    assert "not that of an archive" in refusal(DamagedFileError, "archive", digits.path.parent)
