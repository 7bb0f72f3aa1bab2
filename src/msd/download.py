"""Verified downloads that go on where they were cut.

A file is received into ``<name>.part``, checked against Content-Length and sha256, and only then given its name. What
was received before a cut connection, a kill or a full disk is kept, and the same call resumes it (HTTP Range). Where
no sha256 is given, that of the first download is recorded in ``<name>.sha256`` and enforced from there on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, MaxRetryError

from msd.errors import DamagedFileError, DownloadError, MissingFileError
from msd.store import digest, one_writer, sha256_file, verify_sha256, write_text

CHUNK = 1 << 16  # bytes; less than one is lost when a connection is cut
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
PAUSES = (1, 4, 15)  # seconds before each further attempt; one that came further than any before starts them anew
BUSY = {408, 425, 429, 500, 502, 503, 504}  # statuses that may pass
KEPT = "What was received is kept; run the same command again to go on."
ELSEWHERE = "Check the address and the network, or put the file into a folder and set MSD_MIRROR to it."


def cache_folder() -> Path:
    """Where downloads are kept: ``$MSD_CACHE``, or ``msd`` under the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MSD_CACHE") or Path(base) / "msd")


def mirrored(name: str) -> Path | None:
    """The file ``name`` in the folder ``$MSD_MIRROR``, if it is there. It is used in place and verified like any."""
    mirror = os.environ.get("MSD_MIRROR")
    path = Path(mirror) / name if mirror else None
    return path if path is not None and path.is_file() else None


def fetch(url: str, sha256: str | None = None) -> Path:
    """A local, verified copy of the file at ``url``, downloaded unless it is there.

    Args:
        url: http, https or file; a name and password for a host belong in ~/.netrc.
        sha256: expected digest, hex; None: that of the first use on this machine.

    Raises:
        MissingFileError: a file:// URL names nothing.
        DamagedFileError: the file that is here has another digest.
        DownloadError: it cannot be fetched, or what was fetched has another digest.
    """
    name = Path(unquote(urlsplit(url).path)).name
    if not name:
        raise DownloadError("A URL names no file.", where=shown(url))
    folder = cache_folder() / "downloads" / f"{Path(name).stem}-{digest(url, 8)}"
    here = _local(url, name)
    path, record = here or folder / name, folder / f"{name}.sha256"
    try:
        with one_writer(folder, on_wait=lambda: print(f"waiting: another process fetches {name}", file=sys.stderr)):
            recorded = _recorded(record)
            expected = sha256 or recorded
            if not path.is_file():
                _download(url, path, expected)
            elif expected is not None:
                todo = f"Delete it and run the same command again; if it was replaced on purpose, delete {record} too."
                verify_sha256(path, expected, todo=todo)
            if recorded is None or recorded != expected:
                write_text(record, f"{expected or sha256_file(path)}  {name}\n")
    except OSError as e:
        raise DownloadError(
            "A download cannot be kept.",
            where=str(e.filename or folder),
            why=e.strerror or str(e),
            todo=f"Make room, or set MSD_CACHE to another folder. {KEPT}",
        ) from None
    return path


def forget(path: Path) -> None:
    """Remove a download that has served. What ``fetch`` found elsewhere, in a mirror say, is the user's and stays."""
    if path.is_relative_to(cache_folder() / "downloads"):
        path.unlink(missing_ok=True)


def _recorded(record: Path) -> str | None:
    """The digest in a record, which `sha256sum -c` reads too."""
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    return words[0] if words else None


def shown(text: str) -> str:
    """A message with its URLs made harmless: no password, and no query, which may hold a token."""
    return re.sub(
        r"(\w+://)(?:[^/\s@]*@)?([^\s?'\"]*)(\?[^\s'\"]*)?", lambda m: m[1] + m[2] + ("?…" if m[3] else ""), text
    )


def _local(url: str, name: str) -> Path | None:
    """The file in the mirror folder or behind a file:// URL."""
    here = mirrored(name)
    if here is None and url.startswith("file://"):
        here = Path(url2pathname(urlsplit(url).path))
        if not here.is_file():
            raise MissingFileError("A file that a file:// URL names does not exist.", where=str(here))
    return here


def _download(url: str, path: Path, sha256: str | None) -> None:
    """Receive ``url`` into ``path``: by way of ``.part``, with retries, verified."""
    part = path.with_name(f"{path.name}.part")
    _retry(url, part, lambda: _receive(url, part, may_resume=sha256 is not None))
    if sha256 is not None:
        try:
            verify_sha256(part, sha256)
        except DamagedFileError as e:
            _discard(part)
            raise DownloadError(
                "A downloaded file is not the expected one; it was removed.",
                where=shown(url),
                why=e.why,
                todo="Check the URL and the sha256; run the same command again if a proxy may have changed it.",
            ) from None
    os.replace(part, path)
    _discard(part)


class _Cut(Exception):
    """An attempt failed in a way that another may not."""


def _retry(url: str, part: Path, receive: Callable[[], None]) -> None:
    """Attempts with growing pauses, until several in a row come no further than those before."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            receive()
            return
        except (_Cut, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as e:
            if _size(part) > furthest:  # a discarded file that is received again is no progress
                failures, furthest = 0, _size(part)
            if failures == len(PAUSES):
                raise DownloadError(
                    "A download failed.",
                    where=shown(url),
                    why=f"{_reason(e)}; {len(PAUSES) + 1} attempts",
                    todo=f"{KEPT} ({part}: {_size(part):,} bytes)" if _size(part) else ELSEWHERE,
                ) from None
            time.sleep(PAUSES[failures])
            failures += 1
        except requests.RequestException as e:
            raise DownloadError("A download failed.", where=shown(url), why=_reason(e), todo=ELSEWHERE) from None


def _receive(url: str, part: Path, may_resume: bool) -> None:
    """One attempt: append what is missing to ``part``, or write it from its beginning.

    Args:
        may_resume: a digest will tell if the old and the new bytes do not belong together; if there is none, the
            server's validator (ETag or Last-Modified) must.
    """
    validator = part.with_name(f"{part.name}.validator")
    known = validator.read_text(encoding="utf-8") if validator.is_file() else ""
    have = _size(part) if known or may_resume else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": known} if known else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return  # it was complete
            _discard(part)
            raise _Cut("the file on the server is shorter than what was received before")
        _check(response)
        start, total = _extent(response)
        if start not in (0, have):
            _discard(part)
            raise _Cut("the server sent another range than it was asked for")
        _check_room(part, (total or 0) - start)
        if not start:
            write_text(validator, _validator(response))
        size = "an unknown number" if total is None else f"{total:,}"
        print(f"downloading {shown(url)}: from byte {start:,} of {size}", file=sys.stderr, flush=True)
        bar = tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if start else "wb") as f, bar:
            for chunk in response.iter_content(CHUNK):
                f.write(chunk)
                bar.update(len(chunk))
            f.flush()
            os.fsync(f.fileno())
    if total is not None and _size(part) != total:
        raise _Cut(f"the connection ended at byte {_size(part):,} of {total:,}")


def _check(response: requests.Response) -> None:
    """Refuse what is no file."""
    status = f"the server answered {response.status_code} {response.reason}"
    if response.status_code in BUSY:
        raise _Cut(status)
    if response.status_code not in (200, 206):
        raise DownloadError("A download was refused.", where=shown(response.url), why=status, todo=ELSEWHERE)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        why = "the server sent a web page instead, a log-in perhaps"
        raise DownloadError("A URL gives no file.", where=shown(response.url), why=why, todo=ELSEWHERE)
    encoding = response.headers.get("Content-Encoding", "")
    if encoding not in ("", "identity"):  # its sizes and ranges would be those of other bytes
        why = f"the server packs it ({encoding}), though asked not to"
        raise DownloadError("A download was refused.", where=shown(response.url), why=why, todo=ELSEWHERE)


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(
            "The disk has no room for a download.",
            where=str(part.parent),
            why=f"{needed:,} bytes are missing, {free:,} are free",
            todo=f"Make room, or set MSD_CACHE to another folder. {KEPT}",
        )


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """The first byte that an answer brings, and the size of the whole file, if it tells."""
    if response.status_code == 206:
        match = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(match[1]), int(match[2])) if match else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(response: requests.Response) -> str:
    """What tells, in If-Range, that the file on the server is still the same; a weak ETag may not."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _reason(error: requests.RequestException | _Cut) -> str:
    """What went wrong, without the URL that some messages of requests hold: there may be a token in it."""
    if isinstance(error, _Cut):
        return str(error)
    cause = error.args[0] if error.args else error
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return shown(str(cause)) if isinstance(cause, HTTPError) else type(error).__name__


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    """Remove a partial file and what is known of it."""
    for path in (part, part.with_name(f"{part.name}.validator")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
