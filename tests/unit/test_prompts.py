"""Prompts of every format come out the same; what is bad is counted and named; nothing in a pickle is run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pytest
from prompt_files import FORMATS, write_coco, write_latents, write_parquet, write_pickle, write_txt
from pyarrow import parquet

from msd.errors import ConfigError, DamagedFileError, DataError, MissingFileError, MsdError, UnsafeFileError
from msd.store import Manifest, sha256_file
from msd.text import Prompt, PromptReport, open_prompts, read_prompts, write_prompts

PROMPTS = ["A dog on a beach.", "two  red motor bikes", "ein Mädchen, 日本語, 🙂", "A dog on a beach?", "x"]


def refusal(error: type[MsdError], path: Path, **options: Any) -> str:
    """The message of the error that reading must end with."""
    with pytest.raises(error) as refused:
        list(read_prompts(path, **options))
    return str(refused.value)


# --- what is read ---


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_prompts(form: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    path, report = write(tmp_path / name, PROMPTS), PromptReport()
    prompts = list(read_prompts(path, report))
    assert [(p.text, p.source_row) for p in prompts] == [(text, i) for i, text in enumerate(PROMPTS)]
    assert [p.image_id for p in prompts] == [9 * i if form == "coco" else None for i in range(len(PROMPTS))]
    assert report == PromptReport(rows=5, kept=5)
    renamed = path.rename(tmp_path / "other")
    if form != "lmdb":  # a folder shows what it is
        assert "Say it" in refusal(ConfigError, renamed)
    assert list(read_prompts(renamed, format=form)) == prompts


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("count", [1, 3, 2500])
def test_pickles_of_every_protocol(protocol: int, count: int, tmp_path: Path) -> None:
    """With strings that come twice, which a pickle refers back to, and long ones."""
    texts = [PROMPTS[i % 5] if i % 2 else f"{i} ü" * (1 + i % 300) for i in range(count)]
    path = write_pickle(tmp_path / "p.pkl", texts, protocol)
    assert [p.text for p in read_prompts(path, keep_duplicates=True)] == texts


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    record = {"prompt": "p", "text": "t", "url": "u", "image_id": 7}
    lines = write_txt(tmp_path / "a.jsonl", [json.dumps(record)])
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([record]), table)
    for path in (lines, table):
        assert list(read_prompts(path)) == [Prompt("p", 0, 7)]
        assert list(read_prompts(path, column="url")) == [Prompt("u", 0, 7)]
        assert "'titel'" in refusal(DataError, path, column="titel")
    assert "Name the column" in refusal(DataError, write_txt(tmp_path / "b.jsonl", ['{"url": "u"}']))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_columns_of_parquet(kind: pa.DataType, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"caption": pa.array(["a", None, "b"]).cast(kind)}), path)
    report = PromptReport()
    assert [p.text for p in read_prompts(path, report)] == ["a", "b"]
    assert report.empty.rows == [1]


def test_reading_imports_no_torch() -> None:
    code = "import sys, msd.text; assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


# --- cleaning ---


def test_what_is_found_is_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = [
        b"\xef\xbb\xbfa cat",
        b" a  cat\r",
        b"",
        b"\t",
        b"caf\xc3\xa9",
        "cafe\u0301".encode(),
        b"\xff\xfe",
        b"A cat",
    ]
    path.write_bytes(b"\n".join(lines))
    report = PromptReport()
    prompts = list(read_prompts(path, report))
    assert prompts == [Prompt("a cat", 0), Prompt("café", 4), Prompt("A cat", 7)]
    assert (report.rows, report.kept) == (8, 3)
    assert (report.empty.rows, report.duplicates.rows, report.not_utf8.rows) == ([2, 3], [1, 5], [6])
    assert str(report) == ("3 of 8 prompts kept, 2 empty (rows 2, 3), 1 not utf8 (rows 6), 2 duplicates (rows 1, 5)")
    kept = list(read_prompts(path, report := PromptReport(), keep_duplicates=True))
    assert [p.source_row for p in kept] == [0, 1, 4, 5, 7]
    assert kept[1].text == "a  cat"
    assert (report.duplicates.count, report.stripped.rows) == (2, [1])
    assert "row 6" in refusal(DataError, path, strict=True)


def test_only_the_first_few_rows_are_named(tmp_path: Path) -> None:
    report = PromptReport()
    list(read_prompts(write_txt(tmp_path / "a.txt", [""] * 50), report))
    assert report.empty.count == 50
    assert report.empty.rows == [0, 1, 2, 3, 4]
    assert "(rows 0, 1, 2, 3, 4, …)" in str(report)


def test_text_that_is_no_utf8_in_every_format_that_can_hold_it(tmp_path: Path) -> None:
    half = "half \ud83d"
    as_json = [json.dumps({"caption": text}) for text in (half, "b")]
    (tmp_path / "raw.jsonl").write_bytes(b'{"caption": "\xff"}\n{"caption": "b"}')
    raw = pa.array([b"\xff", b"b"]).cast(pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    parquet.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    latents = write_latents(tmp_path / "lmdb", ["a", "b"])
    with lmdb.open(str(latents), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"prompts_0_data", b"\xff")
    for path in (
        write_txt(tmp_path / "a.jsonl", as_json),
        tmp_path / "raw.jsonl",
        tmp_path / "a.parquet",
        write_coco(tmp_path / "a.json", [half, "b"]),
        latents,
    ):
        report = PromptReport()
        assert [p.text for p in read_prompts(path, report)] == ["b"], path
        assert report.not_utf8.rows == [0], path


# --- files that are not what they should be ---


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("pwned",)


HOSTILE: dict[str, Any] = {
    "a call": Bomb(),
    "a call in the list": ["a", Bomb()],
    "a name": [os.mkdir],
    "a dictionary": {"a": 1},
    "bytes": [b"a"],
    "a number": ["a", 3],
    "a tuple": [("a", "b")],
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("content", HOSTILE)
def test_pickle_with_more_than_strings_is_refused_unread(
    content: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(HOSTILE[content], protocol))
    assert "Nothing of it was run" in refusal(UnsafeFileError, path)
    assert not (tmp_path / "pwned").exists()


def test_old_names_and_extensions_in_pickles_are_refused(tmp_path: Path) -> None:
    for i, content in enumerate(
        (b"(lp0\ncos\nmkdir\n.", b"]\x82\x01.", b"](ios\nmkdir\n.", b"]Pid\n.", b"](Va\n1\x83b.")
    ):
        path = tmp_path / f"{i}.pkl"
        path.write_bytes(content)
        assert "Nothing of it was run" in refusal(UnsafeFileError, path)


def test_pickles_that_are_no_list_of_strings(tmp_path: Path) -> None:
    itself: list[Any] = ["a"]
    itself.append(itself)
    for i, value in enumerate(("text", [["a"]], itself, [[]])):
        path = tmp_path / f"{i}.pkl"
        path.write_bytes(pickle.dumps(value))
        assert "not one list of strings" in refusal(DataError, path)


def test_damaged_pickles_end_in_one_error(tmp_path: Path) -> None:
    """Cut anywhere, or with any byte changed: one of ours, or a list of strings."""
    whole, path = pickle.dumps(PROMPTS), tmp_path / "p.pkl"
    pickletools.dis(whole, out=io.StringIO())
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        refusal(DamagedFileError, path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(DamagedFileError, DataError, UnsafeFileError):
            assert all(isinstance(p.text, str) for p in read_prompts(path))
    for content in (b"\x80\x05]\x8d" + (2**62).to_bytes(8, "little") + b"a.", b"]0000.", b"e.", b"]h\x09a."):
        path.write_bytes(content)
        refusal((DamagedFileError, UnsafeFileError), path)  # type: ignore[arg-type]


BROKEN: dict[str, tuple[str, bytes, type[MsdError]]] = {
    "a line that is no JSON": ("a.jsonl", b'{"caption": "a"}\n{"caption": ', DamagedFileError),
    "a line that is a list": ("a.jsonl", b'{"caption": "a"}\n["b"]', DataError),
    "a line without the column": ("a.jsonl", b'{"caption": "a"}\n{"text": "b"}', DataError),
    "a line with a number": ("a.jsonl", b'{"caption": "a"}\n{"caption": 3}', DataError),
    "a line that is deeply nested": ("a.jsonl", b'{"caption": "a"}\n' + b"[" * 100_000, DamagedFileError),
    "a line without an end": ("a.txt", b"a\n" + b"b" * (2**20 + 1), DamagedFileError),
    "JSON that is cut": ("a.json", b'{"annotations": [', DamagedFileError),
    "JSON in Latin-1": ("a.json", b'{"annotations": "\xe4"}', DamagedFileError),
    "JSON of something else": ("a.json", b'{"images": []}', DataError),
    "JSON of a list": ("a.json", b"[1]", DataError),
    "COCO's boxes": ("a.json", b'{"annotations": [{"image_id": 1, "bbox": []}]}', DataError),
    "parquet that is none": ("a.parquet", b"PAR1 no PAR1", DamagedFileError),
    "an empty pickle": ("a.pkl", b"", DamagedFileError),
    "an unknown suffix": ("a.csv", b"a", ConfigError),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_one_error_with_its_path(case: str, tmp_path: Path) -> None:
    name, content, error = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(error, path)
    assert str(path) in message
    assert "row 1" in message or name != "a.jsonl"


def test_other_broken_sources(tmp_path: Path) -> None:
    refusal(MissingFileError, tmp_path / "none.txt")
    refusal(MissingFileError, tmp_path / "none", format="txt")
    refusal(ConfigError, tmp_path)
    assert "no format 'xml'" in refusal(ConfigError, tmp_path, format="xml")
    numbers = tmp_path / "numbers.parquet"
    parquet.write_table(pa.table({"text": [1, 2]}), numbers)
    assert "holds no text" in refusal(DataError, numbers)
    cut = write_parquet(tmp_path / "cut.parquet", PROMPTS)
    cut.write_bytes(cut.read_bytes()[:-20])
    refusal(DamagedFileError, cut)
    for key, value in {"prompts_3_data": None, "prompts_shape": b"4", "latents_shape": b"99 4 64 64"}.items():
        path = write_latents(tmp_path / key, PROMPTS)
        with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
            transaction.put(key.encode(), value) if value else transaction.delete(key.encode())
        refusal((DamagedFileError, DataError), path)  # type: ignore[arg-type]


# --- archives ---


@pytest.mark.parametrize("form", FORMATS)
def test_archive_holds_what_was_read(form: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    source = write(tmp_path / name, [*PROMPTS, "", PROMPTS[0]])
    manifest = write_prompts(source, tmp_path / "out", shard_size=2)
    assert sorted(manifest.body["files"]) == ["prompts-000000000", "prompts-000000002", "prompts-000000004"]
    assert manifest.results["report"]["empty"] == {"count": 1, "rows": [5]}
    archive, prompts = open_prompts(Manifest.read(manifest.path)), list(read_prompts(source))
    assert list(archive) == archive[:] == prompts
    assert [archive[i] for i in (4, 0, -1, 3)] == [prompts[i] for i in (4, 0, -1, 3)]
    assert archive[1:4] == prompts[1:4]
    assert archive[::-2] == prompts[::-2]
    assert len(archive) == 5
    with pytest.raises(IndexError):
        archive[5]
    shard = manifest.file("prompts-000000002")
    assert [p.text for p in read_prompts(shard)] == PROMPTS[2:4]


def test_digest_of_an_archive_is_that_of_its_prompts(tmp_path: Path) -> None:
    source = write_txt(tmp_path / "a.txt", PROMPTS)
    one, many = write_prompts(source, tmp_path / "one"), write_prompts(source, tmp_path / "many", shard_size=1)
    assert one.results["sha256"] == many.results["sha256"] == sha256_file(one.file("prompts-000000000"))
    assert one.results["source_sha256"] == sha256_file(source)
    fewer = write_prompts(source, tmp_path / "fewer", limit=3)
    assert fewer.results["prompts"] == len(open_prompts(fewer)) == 3
    assert fewer.results["sha256"] != one.results["sha256"]


def test_archive_is_refused_where_one_is_or_where_nothing_is_left(tmp_path: Path) -> None:
    source = write_txt(tmp_path / "a.txt", PROMPTS)
    manifest = write_prompts(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="in use"):
        write_prompts(source, tmp_path / "out")
    utf16 = tmp_path / "b.txt"
    utf16.write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(DataError, match="3 not utf8"):
        write_prompts(utf16, tmp_path / "b")
    assert not (tmp_path / "b/manifest.json").exists()
    path = manifest.file("prompts-000000000")
    path.write_bytes(path.read_bytes().replace(b"dog", b"cat"))
    with pytest.raises(DamagedFileError):
        open_prompts(manifest)[0]
    with pytest.raises(DamagedFileError, match="not that of prompts"):
        open_prompts(Manifest.write(tmp_path / "m.json", kind="data", settings={}))


# --- size ---


GROWTH = """
import resource, sys
from pathlib import Path
from msd.store import Manifest
from msd.text import open_prompts, read_prompts, write_prompts
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
list(read_prompts(Path(sys.argv[1]), format="txt"))
before = peak()
{}
print((peak() - before) / 1e3)
"""


def growth(path: Path, code: str) -> float:
    """MB by which a process of its own grows beyond what it needs for a small file."""
    small = write_txt(path.with_suffix(".small"), PROMPTS)
    arguments = [sys.executable, "-c", GROWTH.format(code), str(small), str(path)]
    return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def test_memory_stays_flat_over_many_lines(tmp_path: Path) -> None:
    """Whatever the number of lines, apart from the hash of each distinct prompt."""
    lines, words = 200_000, "a photograph of a thing on a table " * 3
    same, distinct = tmp_path / "same.txt", tmp_path / "distinct.txt"
    same.write_text("".join(f"{words}{i % 100}\n" for i in range(lines)))
    distinct.write_text("".join(f"{words}{i}\n" for i in range(lines)))
    assert same.stat().st_size > 20e6
    count = f"assert sum(1 for _ in read_prompts(Path(sys.argv[2]), keep_duplicates=True)) == {lines}"
    assert growth(same, count) < 5
    assert growth(distinct, count) < 5 + lines * 120 / 1e6
    folder = tmp_path / "out"
    write = f"write_prompts(Path(sys.argv[2]), Path({str(folder)!r}), keep_duplicates=True, shard_size=1000)"
    assert growth(same, write) < 5
    read = f"assert sum(1 for _ in open_prompts(Manifest.read(Path({str(folder)!r}) / 'manifest.json'))) == {lines}"
    assert growth(same, read) < 5


# --- real captions ---


def test_real_captions_are_read_and_cleaned(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/prompts"
    manifest = write_prompts(folder / "coco-captions-train.txt", tmp_path / "train")
    report = manifest.results["report"]
    assert {name: report[name] for name in ("rows", "kept")} == {"rows": 53_009, "kept": 53_001}
    assert report["duplicates"] == {"count": 8, "rows": [6336, 6513, 11858, 12038, 23311]}
    assert (report["empty"]["count"], report["not_utf8"]["count"]) == (0, 0)
    found = PromptReport()
    captions = list(read_prompts(folder / "coco14-eval-30k.txt", found, keep_duplicates=True))
    assert len(captions) == 30_000, "an evaluation's captions keep their places"
    assert (found.duplicates.count, found.stripped.count) == (593, 3488)
