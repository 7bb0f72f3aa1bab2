"""DMD2's files of latents: what is written is read, copies go on where they stopped, and damage is one error."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest
from prompt_files import write_latents

from msd.errors import DamagedFileError, DataError, InterruptedRun, MsdError
from msd.latent.archive import write_latents as copy_latents
from msd.latent.lmdb import LmdbLatents

COUNT, SHAPE = 11, (4, 8, 8)
PROMPTS = [f"a dog, number {i}" for i in range(COUNT - 1)] + ["naïve 日本語 "]
LATENTS = np.random.default_rng(0).normal(size=(COUNT, *SHAPE)).astype(np.float16)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("msd.latent.archive.SHARD", 4)
    return write_latents(tmp_path / "latents_lmdb", PROMPTS, LATENTS)


def put(path: Path, key: str, value: bytes | None) -> None:
    """Change an entry; None: remove it."""
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        assert transaction.delete(key.encode()) if value is None else transaction.put(key.encode(), value)


@pytest.mark.parametrize("single_file", [False, True])
def test_what_was_written_is_read(path: Path, single_file: bool) -> None:
    source = LmdbLatents(path / "data.mdb" if single_file else path)
    assert (len(source), source.image_shape) == (COUNT, SHAPE)
    assert source.latents(0, COUNT).dtype == np.float16
    assert np.array_equal(source.latents(0, COUNT), LATENTS)
    assert np.array_equal(source.latents(3, 2), LATENTS[3:5])


def test_a_copy_goes_on_where_it_stopped(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = LmdbLatents(path), tmp_path / "out"
    with pytest.raises(InterruptedRun, match="4 of 11 latents are written"):
        copy_latents(source, "a", out, stop=lambda: "a signal")
    read: list[int] = []
    latents = source.latents
    monkeypatch.setattr(source, "latents", lambda first, number: read.append(first) or latents(first, number))
    files = copy_latents(source, "a", out).files
    assert read == [4, 8]
    assert np.array_equal(np.concatenate([np.load(file) for file in files.values()]), LATENTS)


def test_latents_that_are_not_finite_are_named(path: Path, tmp_path: Path) -> None:
    latent = LATENTS[6].copy()
    latent[3, 7, 7] = np.inf
    put(path, "latents_6_data", latent.tobytes())
    with pytest.raises(DataError, match="latents_6_data"):
        copy_latents(LmdbLatents(path), "a", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").glob("*.npy")] == ["latents-000000000.npy"]


DAMAGE: dict[str, tuple[str, bytes | None, type[MsdError]]] = {
    "no shape": ("latents_shape", None, DamagedFileError),
    "a shape that is none": ("latents_shape", b"eleven", DamagedFileError),
    "another shape": ("latents_shape", b"11 256", DataError),
    "nothing in them": ("latents_shape", b"11 4 0 8", DataError),
    "more than there are": ("latents_shape", b"12 4 8 8", DataError),
    "fewer prompts": ("prompts_shape", b"10", DataError),
    "other sizes": ("latents_shape", b"11 4 8 16", DamagedFileError),
    "a latent less": ("latents_10_data", None, DamagedFileError),
    "a short latent": ("latents_10_data", LATENTS[0].tobytes()[:-2], DamagedFileError),
}


def read_all(path: Path) -> None:
    source = LmdbLatents(path)
    source.latents(0, len(source))


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_error(case: str, path: Path) -> None:
    key, value, error = DAMAGE[case]
    put(path, key, value)
    with pytest.raises(error) as refused:
        read_all(path)
    assert str(path) in str(refused.value)


def test_a_folder_without_a_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="cannot be read"):
        LmdbLatents(tmp_path / "none")
