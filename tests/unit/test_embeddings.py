"""Embeddings are drawn in shards: what is whole is kept, random rows are those in order, other inputs share none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_files import write_txt
from safetensors.torch import load_file

from msd import store
from msd.errors import DamagedFileError, DataError, InterruptedRun, LeaseLostError
from msd.store import Manifest, sha256_file
from msd.text import PromptArchive, open_prompts, write_prompts
from msd.text.embeddings import embed_prompts, open_embeddings
from msd.text.encoder import Encoded, TextEncoder, open_encoder
from msd.text.tiny import make_tiny_encoder

COUNT, SHARD = 22, 5  # the last shard has two
STARTS = [0, 5, 10, 15, 20]
PROMPTS = [f"a photograph of {i} dogs " * (30 if i == 7 else 1) for i in range(COUNT)]


class Crash(BaseException):
    """Nothing in msd catches this, as nothing catches kill -9."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_encoder(PROMPTS, folder, vocabulary=560, length=24, width=16, layers=1)
    return open_encoder(folder, "cpu")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptArchive:
    folder = tmp_path_factory.mktemp("prompts")
    return open_prompts(write_prompts(write_txt(folder / "a.txt", PROMPTS), folder, shard_size=4))


@pytest.fixture
def encoded(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first prompt of every shard that is encoded, in order."""
    seen: list[str] = []
    encode = encoder.encode

    def noting(lines: list[str]) -> Encoded:
        seen.append(lines[0])
        return encode(lines)

    monkeypatch.setattr(encoder, "encode", noting)
    return seen


@pytest.fixture(scope="module")
def undisturbed(prompts: PromptArchive, encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return embed_prompts(prompts, encoder, tmp_path_factory.mktemp("undisturbed"), shard_size=SHARD)


def same(a: Manifest, b: Manifest) -> bool:
    """Whether two archives have the same files."""
    hashes = [{name: m.sha256(name) for name in m.body["files"]} for m in (a, b)]
    return hashes[0] == hashes[1] and a.results == b.results


def crash_after(count: int) -> Callable[..., None]:
    def progress(done: int, total: int, _: dict[str, float]) -> None:
        assert total == COUNT
        if done == count:
            raise Crash

    return progress


def starts_of(seen: list[str]) -> list[int]:
    return [[p.strip() for p in PROMPTS].index(first) for first in seen if first]


# --- what is in it ---


def test_archive_holds_what_the_encoder_says(undisturbed: Manifest, encoder: TextEncoder) -> None:
    embeddings = open_embeddings(Manifest.read(undisturbed.path))
    expected = encoder.encode([p.strip() for p in PROMPTS])
    hidden = embeddings.hidden(torch.arange(COUNT))
    assert hidden.dtype == torch.float32
    assert torch.allclose(hidden, expected.hidden, atol=2e-3)  # float16 on disk
    assert torch.allclose(embeddings.pooled(), expected.pooled, atol=1e-5)
    assert torch.equal(embeddings.truncated(), expected.truncated)
    assert torch.allclose(embeddings.empty, encoder.encode([""]).hidden[0], atol=2e-3)
    assert (len(embeddings), embeddings.shape) == (COUNT, (24, 16))
    assert undisturbed.results == {
        "prompts": COUNT,
        "length": 24,
        "width": 16,
        "truncated": 1,
        "encoder": {"kind": "clip_text_model", "sha256": encoder.sha256},
    }
    assert list(undisturbed.body["inputs"]) == ["prompts"]


def test_random_rows_are_those_in_order(undisturbed: Manifest) -> None:
    embeddings = open_embeddings(undisturbed)
    whole = torch.cat([load_file(undisturbed.file(f"embeddings-{first:09d}"))["hidden"] for first in STARTS]).float()
    order = torch.randint(0, COUNT, (100,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(embeddings.hidden(order), whole[order])
    assert torch.equal(embeddings.pooled(order), embeddings.pooled()[order])
    assert embeddings.hidden(torch.empty(0, dtype=torch.int64)).shape == (0, 24, 16)
    for wrong in (-1, COUNT):
        with pytest.raises(IndexError):
            embeddings.hidden(torch.tensor([0, wrong]))


def test_rows_are_copies(undisturbed: Manifest) -> None:
    """Whoever changes a batch does not change the archive."""
    embeddings = open_embeddings(undisturbed)
    first = torch.tensor([3])
    before = embeddings.hidden(first)
    embeddings.hidden(first).zero_()
    assert torch.equal(embeddings.hidden(first), before)


def test_no_file_stays_open_and_nothing_is_read_ahead(tmp_path: Path, prompts: PromptArchive) -> None:
    """An archive of more shards than a process may open files, larger than what is held of it."""

    class Wide:
        kind, pooling, sha256, length, width = "clip_text_model", "prompt", "wide", 77, 768

        def encode(self, lines: list[str]) -> Encoded:
            n = len(lines)
            return Encoded(torch.ones(n, 77, 768), torch.ones(n, 768), torch.zeros(n, dtype=torch.bool))

    manifest = embed_prompts(prompts, Wide(), tmp_path, shard_size=1)  # type: ignore[arg-type]
    files = len(list(Path("/proc/self/fd").iterdir()))
    archives = [open_embeddings(manifest, verify=False) for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    before = resident()
    rows = archives[-1].hidden(torch.arange(COUNT))
    assert rows.mean() == 1
    grown = resident() - before
    assert grown < 2 * rows.numel() * 4 / 1e6, "MB; the batch itself, and the pages that it came from"


def resident() -> float:
    """MB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_other_types_on_disk(prompts: PromptArchive, encoder: TextEncoder, tmp_path: Path) -> None:
    embeddings = open_embeddings(embed_prompts(prompts, encoder, tmp_path, dtype=torch.float32))
    lines = [p.text for p in prompts]
    assert torch.allclose(embeddings.hidden(torch.arange(COUNT)), encoder.encode(lines).hidden, atol=1e-6)


def test_states_that_do_not_fit_the_type_are_refused(
    prompts: PromptArchive, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder.encode
    large = lambda lines: Encoded(encode(lines).hidden * 1e6, encode(lines).pooled, encode(lines).truncated)  # noqa: E731
    monkeypatch.setattr(encoder, "encode", large)
    with pytest.raises(DataError, match="not finite"):
        embed_prompts(prompts, encoder, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


# --- going on ---


@pytest.mark.parametrize("stops", [[5], [10, 22], [5, 10, 15, 20]])
def test_killed_job_keeps_whole_shards(
    stops: list[int],
    undisturbed: Manifest,
    prompts: PromptArchive,
    encoder: TextEncoder,
    encoded: list[str],
    tmp_path: Path,
) -> None:
    for count in stops:
        with pytest.raises(Crash):
            embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD, progress=crash_after(count))
    assert not (tmp_path / "manifest.json").exists()
    assert same(embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD), undisturbed)
    assert starts_of(encoded) == STARTS  # none twice


def test_shard_that_a_kill_left_half_written_is_made_again(
    undisturbed: Manifest,
    prompts: PromptArchive,
    encoder: TextEncoder,
    encoded: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after the shard is in place, before its record is."""
    write_json = store.write_json

    def crash_at_second(path: Path, *arguments: Any) -> None:
        if path.name == "embeddings-000000005.json":
            raise Crash
        write_json(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", crash_at_second)
        with pytest.raises(Crash):
            embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD)
    assert (tmp_path / "embeddings-000000005.safetensors").exists()
    assert same(embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD), undisturbed)
    assert starts_of(encoded) == [0, 5, 5, 10, 15, 20]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lose_the_record(path: Path) -> None:
    path.with_suffix(".json").unlink()


def spoil_the_record(path: Path) -> None:
    path.with_suffix(".json").write_text("[]")


@pytest.mark.parametrize("spoil", [flip_a_byte, cut, lose_the_record, spoil_the_record, Path.unlink])
def test_shard_that_is_not_whole_is_made_again(
    spoil: Callable[[Path], None],
    undisturbed: Manifest,
    prompts: PromptArchive,
    encoder: TextEncoder,
    encoded: list[str],
    tmp_path: Path,
) -> None:
    manifest = embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD)
    path = manifest.file("embeddings-000000005")
    spoil(path)
    if spoil not in (lose_the_record, spoil_the_record):
        with pytest.raises(store.MissingFileError if spoil is Path.unlink else DamagedFileError):
            open_embeddings(manifest)
    encoded.clear()
    assert same(embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD), undisturbed)
    assert starts_of(encoded) == [5]


def test_reason_to_stop_stops_after_the_shard_at_hand(
    undisturbed: Manifest, prompts: PromptArchive, encoder: TextEncoder, encoded: list[str], tmp_path: Path
) -> None:
    reasons = iter([None, "SIGTERM"])
    with pytest.raises(InterruptedRun, match="10 of 22") as stopped:
        embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD, stop=lambda: next(reasons))
    assert stopped.value.why == "SIGTERM"
    assert starts_of(encoded) == [0, 5]
    asked = iter([None, None, "too late"])
    assert same(embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD, stop=lambda: next(asked)), undisturbed)


def test_job_that_was_taken_over_writes_no_shard(prompts: PromptArchive, encoder: TextEncoder, tmp_path: Path) -> None:
    def guard() -> None:
        raise LeaseLostError("Taken over.")

    with pytest.raises(LeaseLostError):
        embed_prompts(prompts, encoder, tmp_path, shard_size=SHARD, guard=guard)
    assert list(tmp_path.iterdir()) == []


def test_other_prompts_or_another_encoder_share_no_shards(
    prompts: PromptArchive, encoder: TextEncoder, encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = embed_prompts(prompts, encoder, out, shard_size=SHARD)
    encoded.clear()
    assert same(embed_prompts(prompts, encoder, out, shard_size=SHARD, batch=3), first)
    assert encoded == []
    fewer = open_prompts(write_prompts(write_txt(tmp_path / "b.txt", PROMPTS[:10]), tmp_path / "b"))
    second = embed_prompts(fewer, encoder, out, shard_size=SHARD)
    assert starts_of(encoded) == [0, 5]
    assert len(open_embeddings(second)) == 10
    monkeypatch.setattr(encoder, "sha256", "another")
    encoded.clear()
    third = embed_prompts(fewer, encoder, out, shard_size=SHARD)
    assert starts_of(encoded) == [0, 5]
    assert third.body["identity"] != second.body["identity"]
    assert sha256_file(third.file("embeddings-000000000")) == second.sha256("embeddings-000000000")


def test_manifest_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="not that of embeddings"):
        open_embeddings(Manifest.write(tmp_path / "m.json", kind="prompts", settings={}))
