"""Files are whole or not there, and manifests prove them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

import pytest

from msd import store
from msd.errors import DamagedFileError, MissingFileError
from msd.store import Manifest


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fail(f: IO[str]) -> None:
    f.write("half of the new")
    f.flush()
    raise OSError("disk full")


def test_digest_is_of_the_value_not_of_the_order() -> None:
    assert store.digest({"a": 1, "b": [1.5, None]}) == store.digest({"b": [1.5, None], "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})
    assert store.digest([1, 2]) != store.digest([2, 1])
    assert store.digest("x", 8) == store.digest("x")[:8]


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.digest(float("nan"))


def test_atomic_write_replaces_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with store.atomic_write(path) as f:
            f.write(text)
        assert path.read_text() == text
    assert files_in(path.parent) == ["file"]


def test_atomic_write_leaves_the_old_file_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), store.atomic_write(path) as f:
        fail(f)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["file"]


def test_write_with_keeps_the_ending_and_the_old_file(tmp_path: Path) -> None:
    path, seen = tmp_path / "weights.safetensors", []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.touch(mode=0o600)
        temporary.write_text("new")

    store.write_with(path, write)
    assert seen[0] != path
    assert seen[0].suffix == ".safetensors"
    assert path.stat().st_mode & 0o777 == 0o644  # safetensors would keep it from everybody else
    with pytest.raises(OSError, match="disk full"):
        store.write_with(path, lambda temporary: fail(temporary.open("w")))
    assert path.read_text() == "new"
    assert files_in(tmp_path) == ["weights.safetensors"]


def test_read_only_file_is_replaced_not_rewritten(tmp_path: Path) -> None:
    """DVC's restored files may be read-only links into its cache: the cache must keep its bytes."""
    cache, path = tmp_path / "cache", tmp_path / "manifest.json"
    cache.write_text("{}")
    cache.chmod(0o444)
    path.hardlink_to(cache)
    Manifest.write(path, kind="x", settings={})
    assert cache.read_text() == "{}"
    assert Manifest.read(path).body["kind"] == "x"


def test_manifest_round_trip(tmp_path: Path) -> None:
    before = Manifest.write(tmp_path / "before" / "manifest.json", kind="data", settings={"s": 1})
    weights = tmp_path / "state" / "weights"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    path = tmp_path / "train" / "manifest.json"
    written = Manifest.write(
        path,
        kind="dm",
        settings={"images": 3},
        files={"student": weights},
        inputs={"data": before.path},
        results={"nimg": 3},
        identity="abc",
    )
    read = Manifest.read(path)
    assert read.body == written.body
    assert (read.settings, read.results, read.body["identity"]) == ({"images": 3}, {"nimg": 3}, "abc")
    assert read.file("student") == weights
    assert read.sha256("student") == store.sha256_file(weights)
    assert read.body["inputs"]["data"] == store.file_record(before.path, path.parent)
    assert read.body["machine"]["cores"] == os.cpu_count()
    assert set(read.body["code"]) == {"version", "commit", "dirty"}
    assert time.strptime(read.body["finished"], "%Y-%m-%dT%H:%M:%SZ")


def test_manifest_and_files_may_move_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"weights")
    Manifest.write(tmp_path / "a" / "manifest.json", kind="x", settings={}, files={"w": tmp_path / "a" / "weights"})
    (tmp_path / "a").rename(tmp_path / "b")
    assert Manifest.read(tmp_path / "b" / "manifest.json").file("w") == tmp_path / "b" / "weights"


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(10_000))
    manifest = Manifest.write(tmp_path / "manifest.json", kind="x", settings={}, files={"w": weights})
    flip_a_byte(weights)
    with pytest.raises(DamagedFileError) as damaged:
        manifest.file("w")
    assert damaged.value.where == str(weights)
    assert str(manifest.path) in damaged.value.todo
    assert manifest.file("w", verify=False) == weights


def test_missing_files(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"x")
    manifest = Manifest.write(tmp_path / "manifest.json", kind="x", settings={}, files={"w": weights})
    weights.unlink()
    with pytest.raises(MissingFileError):
        manifest.file("w")
    with pytest.raises(MissingFileError):
        Manifest.read(tmp_path / "nowhere.json")
    with pytest.raises(DamagedFileError, match="does not list the file 'fake_score'"):
        manifest.file("fake_score")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 99}', '{"kind": "x"}', "\xff"])
def test_file_that_is_no_manifest(content: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DamagedFileError) as damaged:
        Manifest.read(path)
    assert damaged.value.where == str(path)
    assert damaged.value.todo


def test_link_is_relative_and_replaced(tmp_path: Path) -> None:
    link = tmp_path / "variants" / "msd4" / "student-0"
    for name in ("one", "two"):
        target = tmp_path / "train" / name
        target.mkdir(parents=True)
        store.link(link, target)
        assert link.resolve() == target
        assert not Path(os.readlink(link)).is_absolute()
    assert files_in(link.parent) == ["student-0"]
