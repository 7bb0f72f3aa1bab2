"""Regression pairs are drawn in shards: what is whole is kept, and the end is the same however often it stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import CLASSES, IMAGE_SHAPE, network

from msd.config import Compute, Sampler
from msd.distill import pairs
from msd.draws import noise_of_images, stream_seed
from msd.errors import InterruptedRun, LeaseLostError
from msd.networks import sample_teacher, save_network
from msd.plan import Node
from msd.store import Manifest, sha256_file

PAIRS, SHARD = 22, 5  # the last shard has two
STARTS = [0, 5, 10, 15, 20]
SAMPLER = Sampler(num_steps=2).model_dump()
COMPUTE = Compute(threads=1, device="cpu")
Progress = Callable[[int, int, dict[str, float]], None]


class Crash(BaseException):
    """Nothing in msd catches this, as nothing catches kill -9."""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SHARD", SHARD)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the first pair of every shard that is drawn, in order."""
    seen: list[int] = []

    def noise(seed: int, first: int, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        seen.append(first)
        return noise_of_images(seed, first, count, shape)

    monkeypatch.setattr(pairs, "noise_of_images", noise)
    return seen


def node(folder: Path, count: int = PAIRS, teacher_seed: int = 1) -> Node:
    """The plan's node for pairs of a teacher that is there."""
    teacher = Node("teacher", "teacher", f"tiny-{teacher_seed}", {}, {}, folder, "tiny teacher")
    if not teacher.manifest.exists():
        weights = teacher.manifest.parent / "weights.safetensors"
        save_network(network(teacher_seed), weights)
        Manifest.write(teacher.manifest, kind="teacher", settings={}, inputs={}, files={"weights": weights}, results={})
    settings = {"seed": 3, "pairs": count, "sampler": SAMPLER}
    return Node("pairs", "pairs", "tiny", settings, {"teacher": teacher}, folder, "tiny pairs")


def make(folder: Path, progress: Progress = lambda *_: None) -> Manifest:
    return pairs.make_pairs(node(folder), COMPUTE, progress)


def after(count: int, act: Callable[[], Any]) -> Progress:
    """Do something when so many pairs are drawn: the shard at hand is whole then."""

    def progress(done: int, total: int, metrics: dict[str, float]) -> None:
        assert total == PAIRS
        if done == count:
            act()

    return progress


def crash() -> None:
    raise Crash


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "state").glob("pairs-*/shard-*.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "SHARD", SHARD)
        return make(tmp_path_factory.mktemp("undisturbed"))


def test_pairs_are_noise_and_the_teachers_sample_for_it(undisturbed: Manifest) -> None:
    found = load_file(undisturbed.file("pairs"))
    assert {name: (tuple(t.shape), t.dtype) for name, t in found.items()} == {
        "noise": ((PAIRS, *IMAGE_SHAPE), torch.float32),
        "images": ((PAIRS, *IMAGE_SHAPE), torch.float32),
        "cond": ((PAIRS,), torch.int64),
    }
    assert torch.equal(found["noise"], noise_of_images(stream_seed(3, "pairs", 0), 0, PAIRS, IMAGE_SHAPE))
    expected = sample_teacher(network(1), found["noise"], found["cond"], SAMPLER)
    # the untrained teacher's images go far beyond [-1, 1]
    assert torch.allclose(found["images"], expected, rtol=1e-3, atol=1e-2)
    assert undisturbed.results == {"pairs": PAIRS}


def test_classes_are_all_alike(undisturbed: Manifest) -> None:
    """Never those of a part: every student sees all of them."""
    cond = load_file(undisturbed.file("pairs"))["cond"]
    assert torch.equal(cond, torch.arange(PAIRS) % CLASSES)


def test_size_of_the_shards_does_not_show(undisturbed: Manifest, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pairs, "SHARD", PAIRS)
    one = load_file(make(tmp_path).file("pairs"))
    many = load_file(undisturbed.file("pairs"))
    assert torch.equal(one["noise"], many["noise"])
    assert torch.equal(one["cond"], many["cond"])
    assert torch.allclose(one["images"], many["images"], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("stops", [[5], [10, 22], [5, 10, 15, 20]])
def test_killed_job_keeps_whole_shards(stops: list[int], undisturbed: Manifest, tmp_path: Path, drawn: Any) -> None:
    for count in stops:
        with pytest.raises(Crash):
            make(tmp_path, after(count, crash))
    assert len(shards(tmp_path)) == -(-stops[-1] // SHARD)
    assert not node(tmp_path).manifest.exists()
    assert sha256_file(make(tmp_path).file("pairs")) == undisturbed.sha256("pairs")
    assert drawn == STARTS  # none twice


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lose_the_record(path: Path) -> None:
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize("spoil", [flip_a_byte, cut, lose_the_record, Path.unlink])
def test_shard_that_is_not_whole_is_drawn_again(
    spoil: Callable[[Path], None], undisturbed: Manifest, tmp_path: Path, drawn: list[int]
) -> None:
    with pytest.raises(Crash):
        make(tmp_path, after(15, crash))
    spoil(shards(tmp_path)[1])
    drawn.clear()
    assert sha256_file(make(tmp_path).file("pairs")) == undisturbed.sha256("pairs")
    assert drawn == [5, 15, 20]


def test_damage_behind_the_finished_file_is_found_too(undisturbed: Manifest, tmp_path: Path, drawn: list[int]) -> None:
    """A job that is run again writes what its shards hold, so they are looked at again."""
    make(tmp_path)
    flip_a_byte(shards(tmp_path)[4])
    drawn.clear()
    assert sha256_file(make(tmp_path).file("pairs")) == undisturbed.sha256("pairs")
    assert drawn == [20]
    drawn.clear()
    make(tmp_path)
    assert drawn == []


def test_signal_stops_after_the_shard_at_hand(undisturbed: Manifest, tmp_path: Path, drawn: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRun) as stopped:
        make(tmp_path, after(10, terminate))
    assert stopped.value.exit_code == 75
    assert stopped.value.what == f"Stopped; 10 of {PAIRS} pairs are drawn."
    assert stopped.value.why == "SIGTERM"
    assert drawn == STARTS[:2]
    assert signal.getsignal(signal.SIGTERM) == before
    assert not node(tmp_path).manifest.exists()
    assert sha256_file(make(tmp_path).file("pairs")) == undisturbed.sha256("pairs")
    assert drawn == STARTS


def test_signal_in_the_last_shard_is_too_late(undisturbed: Manifest, tmp_path: Path) -> None:
    assert make(tmp_path, after(PAIRS, terminate)).sha256("pairs") == undisturbed.sha256("pairs")


def test_job_that_was_taken_over_writes_no_shard(tmp_path: Path) -> None:
    def take_over() -> None:
        (lease,) = (tmp_path / "state").glob("pairs-*/lease-*.json")
        lease.with_name("lease-000099.json").write_text("{}")

    with pytest.raises(LeaseLostError):
        make(tmp_path, after(5, take_over))
    assert len(shards(tmp_path)) == 1
    assert not node(tmp_path).manifest.exists()


def test_other_settings_or_another_teacher_share_no_shards(tmp_path: Path, drawn: list[int]) -> None:
    make(tmp_path)
    drawn.clear()
    pairs.make_pairs(node(tmp_path, count=10), COMPUTE, lambda *_: None)
    assert drawn == [0, 5]
    drawn.clear()
    pairs.make_pairs(node(tmp_path, teacher_seed=2), COMPUTE, lambda *_: None)
    assert drawn == STARTS
