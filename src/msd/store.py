"""Files that are never half-written: canonical JSON, sha256, atomic replace, manifests, one writer at a time.

A *manifest* is the small JSON file that proves that a piece of work is complete. It is written last, names every
file by sha256 and is the only kind of file that the workflow's rules hand to each other.
Does not know what the files mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from msd import __version__
from msd.errors import DamagedFileError, MissingFileError

MANIFEST_SCHEMA = 1
TEMPORARY = re.compile(r"\.\d+\..+|\..+\.tmp")  # the names that ``write_with`` and ``atomic_write`` write under


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 64) -> str:
    """The first ``length`` hex digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w", guard: Callable[[], None] = lambda: None) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces ``path`` when the block ends well: temporary, fsync, rename.

    After an exception (a full disk, say) ``path`` is as it was and the temporary file is gone. ``guard`` is called
    right before the rename; if it raises, it is no different.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        guard()
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_with(path: Path, writer: Callable[[Path], object], guard: Callable[[], None] = lambda: None) -> None:
    """Let ``writer`` fill a temporary path, then move it to ``path`` atomically.

    For libraries that insist on opening the file themselves. ``guard`` is called right before the move; if it raises,
    ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix is kept because libraries choose a format by it
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        writer(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        guard()
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _fsync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder that the caller holds alone. A live one's rename fails after that."""
    for path in Path(folder).rglob(".*"):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str, guard: Callable[[], None] = lambda: None) -> None:
    """Write a text file atomically; for ``guard`` see ``atomic_write``."""
    with atomic_write(path, guard=guard) as f:
        f.write(text)


def write_json(path: Path, value: Any, guard: Callable[[], None] = lambda: None) -> None:
    """Write readable JSON atomically. Replaces the file, never rewrites it in place (it may be a read-only link)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n", guard)


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is one clear error."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            "A file is missing.", where=str(path), todo="Run the command or rule that makes it (snakemake -n shows it)."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise DamagedFileError(
            "A JSON file cannot be read.", where=str(path), why=str(e), todo="Delete it and run the same command again."
        ) from None


def file_record(path: Path, relative_to: Path) -> dict[str, Any]:
    """The manifest's entry for one file: relative path, sha256, bytes."""
    path = Path(path)
    return {
        "path": os.path.relpath(path, relative_to),
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
    }


def verify_sha256(path: Path, expected: str, todo: str = "Fetch or make the file again.") -> None:
    """Check a file against its sha256.

    Raises:
        MissingFileError: the file does not exist.
        DamagedFileError: the digest differs (a flipped byte loads silently otherwise).
    """
    if not Path(path).is_file():
        raise MissingFileError("A file is missing.", where=str(path), todo=todo)
    actual = sha256_file(path)
    if actual != expected:
        raise DamagedFileError(
            "A file is damaged or is not the one that was meant.",
            where=str(path),
            why=f"its sha256 is {actual[:16]}…, expected {expected[:16]}…",
            todo=todo,
        )


def machine() -> dict[str, Any]:
    """Where a number was measured."""
    try:
        cpu = next(
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def code_version() -> dict[str, Any]:
    """Package version and, inside a git checkout, the commit. Recorded, never part of an identity."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    return {
        "version": __version__,
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "-uno")),
    }


class Manifest:
    """A manifest on disk, read and written whole.

    Attributes:
        path: the JSON file.
        body: its content; ``files`` maps names to records, ``results`` holds what the stage measured.
    """

    def __init__(self, path: Path, body: dict[str, Any]) -> None:
        self.path, self.body = Path(path), body

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            MissingFileError: it does not exist.
            DamagedFileError: it is not a manifest of a known schema.
        """
        body = read_json(path)
        if not isinstance(body, dict) or body.get("schema") != MANIFEST_SCHEMA:
            raise DamagedFileError(
                "A file is not a manifest of this version.",
                where=str(path),
                why=f"schema is {body.get('schema') if isinstance(body, dict) else None!r}, expected {MANIFEST_SCHEMA}",
                todo="Delete it and run the same command again.",
            )
        return cls(path, body)

    @classmethod
    def write(
        cls,
        path: Path,
        *,
        kind: str,
        settings: dict[str, Any],
        files: dict[str, Path] | None = None,
        inputs: dict[str, Path] | None = None,
        results: dict[str, Any] | None = None,
        identity: str | None = None,
    ) -> Manifest:
        """Write the proof of completion, last of all.

        Args:
            path: where.
            kind: the stage that made it.
            settings: the resolved settings that made it.
            files: name → path of each file made.
            inputs: name → path of each manifest read.
            results: what was measured.
            identity: digest of everything that decides the bytes of the files.
        """
        path = Path(path)
        body = {
            "schema": MANIFEST_SCHEMA,
            "kind": kind,
            "identity": identity,
            "settings": settings,
            "inputs": {name: file_record(p, path.parent) for name, p in (inputs or {}).items()},
            "files": {name: file_record(p, path.parent) for name, p in (files or {}).items()},
            "results": results or {},
            "machine": machine(),
            "code": code_version(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(path, body)
        return cls(path, body)

    @property
    def results(self) -> dict[str, Any]:
        return self.body["results"]

    @property
    def settings(self) -> dict[str, Any]:
        return self.body["settings"]

    def sha256(self, name: str) -> str:
        """The recorded sha256 of one of its files."""
        return self._record(name)["sha256"]

    def file(self, name: str, verify: bool = True) -> Path:
        """Path of one of its files, checked against its sha256 unless told otherwise."""
        record, folder = self._record(name), self.path.parent
        if folder.is_symlink():  # variants/<variant>/student-<k>: the record is relative to where it points
            folder = Path(os.path.relpath(folder.resolve()))
        path = Path(os.path.normpath(folder / record["path"]))
        if verify:
            verify_sha256(path, record["sha256"], todo=f"Delete {self.path} and run the same command again.")
        return path

    def _record(self, name: str) -> dict[str, Any]:
        try:
            return self.body["files"][name]
        except KeyError:
            raise DamagedFileError(
                f"A manifest does not list the file {name!r}.",
                where=str(self.path),
                why=f"it lists {sorted(self.body['files'])}",
                todo="Delete it and run the same command again.",
            ) from None


@contextlib.contextmanager
def one_writer(folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold ``folder`` alone; wait while another process on this machine holds it.

    The kernel drops the lock when its holder dies, however it dies. Who waited finds the work done and adopts it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def link(path: Path, target: Path) -> None:
    """Make ``path`` a relative symbolic link to ``target``, replacing an old link atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(os.path.relpath(target, path.parent))
    os.replace(temporary, path)
