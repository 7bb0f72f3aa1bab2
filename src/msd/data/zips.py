"""Zip files of others, read in place and never unpacked: names that point outside and bombs are refused."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msd.errors import DamagedFileError

MAX_RATIO = 200  # unpacked to packed bytes; pictures have about 1, deflate's limit is about 1,000
HARMLESS = 2**26  # bytes; up to here any ratio is good: that of equal or sorted labels is high


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file for reading, its names and ratios checked.

    Raises:
        DamagedFileError: it is no zip file, a member is damaged, encrypted, named outside of it, or too well packed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check(path, member)
            yield archive
    # RuntimeError: encrypted; NotImplementedError: a compression that Python lacks
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as e:
        raise DamagedFileError(
            "A zip file cannot be read.", where=str(path), why=str(e), todo="Fetch it again."
        ) from None


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether so many bytes would unpack to more than can be data."""
    return unpacked > HARMLESS and unpacked > MAX_RATIO * packed


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """All bytes of one member, which must not be more than ``limit``."""
    size = archive.getinfo(name).file_size
    if size > limit:
        raise DamagedFileError(
            "A member of a zip file is too large.",
            where=f"{archive.filename}: {name}",
            why=f"{size:,} bytes unpacked, at most {limit:,} are read",
        )
    return archive.read(name)


def _check(path: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    why = ""
    if name.is_absolute() or ".." in name.parts:
        why = "its name points outside of the zip file"
    elif is_bomb(member.compress_size, member.file_size):
        why = f"{member.compress_size:,} bytes would unpack to {member.file_size:,}, over {MAX_RATIO} times as many"
    if why:
        raise DamagedFileError("A member of a zip file is refused.", where=f"{path}: {member.filename}", why=why)
