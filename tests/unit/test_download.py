"""Downloads arrive whole and verified, go on where they were cut, and fail with one clear error without secrets."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import file_server
import pytest
from file_server import FileServer

from msd import download
from msd.download import cache_folder, fetch, shown
from msd.errors import DamagedFileError, DownloadError, MissingFileError

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHUNK = 1 << 14
HALF = 9 * CHUNK
FETCH = "import sys; from msd.download import fetch; print(fetch(sys.argv[1], sys.argv[2] or None))"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server.running() as running:
        running.files["/net.pkl"] = CONTENT
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no mirror, and no waiting between attempts."""
    monkeypatch.setenv("MSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MSD_MIRROR", raising=False)
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(download, "CHUNK", CHUNK)
    return tmp_path / "cache"


def partial(cache: Path) -> list[Path]:
    return list(cache.rglob("*.part"))


def refused(server: FileServer, sha256: str | None = SHA256, name: str = "net.pkl") -> DownloadError:
    with pytest.raises(DownloadError) as error:
        fetch(f"{server.url}/{name}", sha256)
    assert not list(cache_folder().rglob(name)), "a file that failed must not have its name"
    return error.value


def cut_off(server: FileServer, sha256: str | None = SHA256) -> None:
    """Leave a half received file behind, as after a call that gave up."""
    server.cuts = [HALF, 0, 0, 0]
    refused(server, sha256)
    server.asked.clear()


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_file_arrives_whole_and_is_asked_for_once(server: FileServer, sha256: str | None, cache: Path) -> None:
    path = fetch(f"{server.url}/net.pkl", sha256)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert path.name == "net.pkl"
    assert fetch(f"{server.url}/net.pkl", sha256) == path
    assert server.asked == [None]
    assert {p.name for p in path.parent.iterdir()} == {"net.pkl", "net.pkl.sha256", "lock"}


def test_files_of_one_name_from_two_places_do_not_meet(server: FileServer) -> None:
    server.files["/other/net.pkl"] = b"another"
    assert fetch(f"{server.url}/net.pkl").read_bytes() == CONTENT
    assert fetch(f"{server.url}/other/net.pkl").read_bytes() == b"another"


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_cut_connection_goes_on_by_itself(server: FileServer, sha256: str | None) -> None:
    server.cuts = [6 * CHUNK, 3 * CHUNK, None]
    assert fetch(f"{server.url}/net.pkl", sha256).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={6 * CHUNK}-", f"bytes={9 * CHUNK}-"]


def test_connection_that_is_cut_often_but_moves_on_succeeds(server: FileServer) -> None:
    server.cuts = [30_000] * 9
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT


def test_what_was_received_is_kept_and_the_same_command_resumes(server: FileServer, cache: Path) -> None:
    server.cuts = [HALF, 0, 0, 0]
    error = refused(server)
    (part,) = partial(cache)
    assert part.stat().st_size == HALF
    assert str(part) in error.todo
    assert "same command again" in error.todo
    assert "4 attempts" in error.why
    server.asked.clear()
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-"]
    assert not partial(cache)


def test_killed_download_resumes(server: FileServer, cache: Path) -> None:
    server.pace = lambda: time.sleep(0.1)
    command = [sys.executable, "-c", FETCH.replace("print", f"import msd.download as d; d.CHUNK = {CHUNK}; print")]
    first = subprocess.Popen([*command, f"{server.url}/net.pkl", SHA256], env=os.environ)
    while not any(p.stat().st_size for p in partial(cache)):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    server.pace = lambda: None
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked[0] is None
    assert server.asked[1] is not None


def test_server_without_ranges_starts_over(server: FileServer) -> None:
    cut_off(server)
    server.ranges = False
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-"]


@pytest.mark.parametrize("sha256", ["new", None])
def test_file_that_changed_in_between_is_fetched_anew(server: FileServer, sha256: str | None) -> None:
    new = CONTENT[::-1]
    sha256 = hashlib.sha256(new).hexdigest() if sha256 else None
    cut_off(server, sha256)
    server.files["/net.pkl"], server.etag = new, '"two"'
    assert fetch(f"{server.url}/net.pkl", sha256).read_bytes() == new


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_digest_and_validator_nothing_is_appended(server: FileServer, etag: str) -> None:
    server.etag = etag
    cut_off(server, None)
    assert fetch(f"{server.url}/net.pkl").read_bytes() == CONTENT
    assert server.asked == [None]


def test_last_modified_is_a_validator_too(server: FileServer) -> None:
    server.etag, server.headers = "", {"Last-Modified": "Wed, 01 Jun 2022 00:00:00 GMT"}
    cut_off(server, None)
    assert fetch(f"{server.url}/net.pkl").read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-"]


def test_wrong_range_is_not_appended(server: FileServer) -> None:
    cut_off(server)
    server.shift = 10
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-", None]


def test_receiving_the_same_again_is_no_progress(server: FileServer) -> None:
    """Cut at the same byte each time, and what was received cannot be gone on with."""
    server.cuts, server.shift = [HALF] * 20, 10
    assert "4 attempts" in refused(server).why
    assert server.asked == [None, f"bytes={HALF}-"] * 2


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_server_that_packs_unasked_is_refused(server: FileServer, sha256: str | None) -> None:
    server.files["/net.pkl"] = gzip.compress(CONTENT)
    server.headers = {"Content-Encoding": "gzip"}
    assert "packs it (gzip)" in refused(server, sha256).why
    assert server.asked == [None]


def test_server_may_send_less_than_it_was_asked_for(server: FileServer) -> None:
    cut_off(server)
    server.window = 5 * CHUNK
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-", f"bytes={HALF + 5 * CHUNK}-"]


def test_partial_file_that_is_whole_needs_its_name_only(server: FileServer, cache: Path) -> None:
    cut_off(server)
    partial(cache)[0].write_bytes(CONTENT)
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_partial_file_that_is_too_long_is_dropped(server: FileServer, cache: Path) -> None:
    cut_off(server)
    partial(cache)[0].write_bytes(CONTENT + b"more")
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_error_that_passes_is_waited_for(server: FileServer, status: int) -> None:
    server.statuses = [status, status]
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "attempts"), [(500, 4), (503, 4), (403, 1), (410, 1)])
def test_error_that_stays_is_told(server: FileServer, status: int, attempts: int) -> None:
    server.statuses = [status] * 10
    assert f"the server answered {status}" in refused(server).why
    assert len(server.asked) == attempts


def test_file_that_is_not_there(server: FileServer) -> None:
    error = refused(server, name="nowhere.pkl")
    assert error.where == f"{server.url}/nowhere.pkl"
    assert "404" in error.why
    assert server.asked == [None]


def test_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/net.pkl?token=secret"
    with pytest.raises(DownloadError) as error:
        fetch(url, SHA256)
    assert "refused" in error.value.why
    assert "MSD_MIRROR" in error.value.todo
    assert "secret" not in str(error.value)


def test_short_content_is_noticed(server: FileServer) -> None:
    """Content-Length promises more than comes, and no digest would tell."""
    server.lie = 10
    server.ranges = False
    assert refused(server, None).todo.startswith("What was received is kept")


def test_wrong_content_is_removed(server: FileServer, cache: Path) -> None:
    server.files["/net.pkl"] = CONTENT[::-1]
    error = refused(server)
    assert f"expected {SHA256[:16]}" in error.why
    assert not partial(cache)
    server.files["/net.pkl"] = CONTENT
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT


def test_web_page_is_no_file(server: FileServer, cache: Path) -> None:
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    assert "web page" in refused(server, None).why
    assert not list(cache.rglob("*.sha256"))


def test_digest_of_the_first_use_is_enforced(server: FileServer) -> None:
    path = fetch(f"{server.url}/net.pkl")
    record = path.with_name("net.pkl.sha256")
    assert record.read_text() == f"{SHA256}  net.pkl\n"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DamagedFileError) as damaged:
        fetch(f"{server.url}/net.pkl")
    assert str(record) in damaged.value.todo
    path.unlink()
    server.files["/net.pkl"] = CONTENT[::-1]
    assert f"expected {SHA256[:16]}" in refused(server, None).why
    server.files["/net.pkl"] = CONTENT
    assert fetch(f"{server.url}/net.pkl").read_bytes() == CONTENT


def test_given_digest_is_above_the_recorded_one(server: FileServer) -> None:
    path = fetch(f"{server.url}/net.pkl")
    new = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(DamagedFileError):
        fetch(f"{server.url}/net.pkl", new)
    path.unlink()
    server.files["/net.pkl"] = CONTENT[::-1]
    assert fetch(f"{server.url}/net.pkl", new).with_name("net.pkl.sha256").read_text().startswith(new)


def test_file_url_is_used_in_place(tmp_path: Path) -> None:
    here = tmp_path / "my net.pkl"
    here.write_bytes(CONTENT)
    assert fetch(here.as_uri(), SHA256) == here
    here.write_bytes(CONTENT[:-1])
    with pytest.raises(DamagedFileError):
        fetch(here.as_uri(), SHA256)
    here.unlink()
    with pytest.raises(MissingFileError):
        fetch(here.as_uri(), SHA256)


def test_mirror_comes_first_and_is_verified(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSD_MIRROR", str(tmp_path))
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT  # it is not in the mirror
    server.asked.clear()
    (tmp_path / "net.pkl").write_bytes(CONTENT)
    assert fetch(f"{server.url}/net.pkl", SHA256) == tmp_path / "net.pkl"
    (tmp_path / "net.pkl").write_bytes(CONTENT[::-1])
    with pytest.raises(DamagedFileError) as damaged:
        fetch(f"{server.url}/net.pkl")  # the digest of the download is on record
    assert damaged.value.where == str(tmp_path / "net.pkl")
    assert server.asked == []


def test_full_disk_is_noticed_before(server: FileServer, cache: Path) -> None:
    server.lie = 10**18
    error = refused(server)
    assert "MSD_CACHE" in error.todo
    assert "bytes are missing" in error.why


def test_disk_that_fills_up_keeps_what_it_took(server: FileServer, cache: Path) -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        error = refused(server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "same command again" in error.todo
    assert partial(cache)[0].stat().st_size == HALF
    server.asked.clear()
    assert fetch(f"{server.url}/net.pkl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-"]


def test_cache_that_is_no_folder(server: FileServer, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(DownloadError) as error:
        fetch(f"{server.url}/net.pkl", SHA256)
    assert "MSD_CACHE" in error.value.todo


def test_two_processes_download_once(server: FileServer) -> None:
    gate = threading.Event()
    server.pace = gate.wait
    command = [sys.executable, "-c", FETCH, f"{server.url}/net.pkl", SHA256]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not server.asked:
        time.sleep(0.02)
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    gate.set()
    (path,) = {Path(process.communicate(timeout=60)[0].strip()) for process in (first, second)}
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_shows_how_long_it_will_take(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(server)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fetch(f"{server.url}/net.pkl", SHA256)
    last = terminal.getvalue().split("\r")[-1]
    assert "net.pkl: 100%" in last
    assert "300k/300k" in last
    assert "<00:00" in last


def test_log_gets_a_line_for_each_attempt_and_no_bar(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.cuts = [HALF]
    fetch(f"{server.url}/net.pkl?token=secret", SHA256)
    assert capsys.readouterr().err.splitlines() == [
        f"downloading {server.url}/net.pkl?…: from byte 0 of 300,000",
        f"downloading {server.url}/net.pkl?…: from byte {HALF:,} of 300,000",
    ]


def test_url_without_a_file(server: FileServer) -> None:
    with pytest.raises(DownloadError):
        fetch(f"{server.url}/", SHA256)


@pytest.mark.parametrize("bad", [{"statuses": [403]}, {"statuses": [500] * 9}, {"files": {"/net.pkl": b"wrong"}}])
def test_no_message_tells_a_token(server: FileServer, bad: dict[str, object]) -> None:
    for name, value in bad.items():
        setattr(server, name, value)
    with pytest.raises(DownloadError) as error:
        fetch(f"{server.url}/net.pkl?download=1&token=secret", SHA256)
    assert "secret" not in str(error.value)
    assert error.value.where == f"{server.url}/net.pkl?…"


def test_shown() -> None:
    text = "Client error '403' for url 'https://me:secret@host:8/a/b.bin?Signature=secret&x=/?' and more"
    assert shown(text) == "Client error '403' for url 'https://host:8/a/b.bin?…' and more"
    assert shown("file:///a/b.pkl") == "file:///a/b.pkl"
