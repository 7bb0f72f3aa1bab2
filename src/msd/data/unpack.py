"""A zip file of pictures as files in a folder: resumed where it was cut, and under its name only when it is whole.

Pictures are checked by the checksums of the zip file, whose own digest is the caller's business. None is decoded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from pathlib import Path

from msd.data.pictures import MAX_PICTURE
from msd.data.stream import Progress
from msd.data.zips import open_zip, read_member
from msd.errors import DamagedFileError, DataError, StorageError
from msd.store import sweep

SUFFIX = ".jpg"


def unpack_pictures(path: Path, folder: Path, count: int, progress: Progress) -> str:
    """Make ``folder`` of the folder of the same name in a zip file that holds nothing else.

    It is ``<folder>.part`` until it is whole. Pictures that are there already, in either, are kept if they are right.

    Returns:
        sha256 of what ``sha256sum *`` prints in the folder.

    Raises:
        DamagedFileError: the zip file cannot be read, holds something else, or other than ``count`` pictures.
        DataError: there is a file that is none of the pictures.
        StorageError: there is no room; what was unpacked is kept.
    """
    at = folder if folder.is_dir() else folder.with_name(f"{folder.name}.part")
    at.mkdir(parents=True, exist_ok=True)
    sweep(at)
    listing = hashlib.sha256()
    with open_zip(path) as archive:
        members = _members(archive, folder.name, count)
        strays = sorted(set(os.listdir(at)) - members.keys())
        if strays:
            raise DataError("A file is between the pictures.", where=str(at / strays[0]), todo="Move it elsewhere.")
        _check_room(at, sum(member.file_size for name, member in members.items() if not (at / name).exists()))
        for done, (name, member) in enumerate(sorted(members.items())):
            listing.update(f"{_unpack(archive, member, at / name)}  {name}\n".encode())
            progress(done + 1, count, {})
    os.sync()  # once, in place of once for every picture
    at.rename(folder)
    return listing.hexdigest()


def _members(archive: zipfile.ZipFile, folder: str, count: int) -> dict[str, zipfile.ZipInfo]:
    """File name → member."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        top, _, name = member.filename.partition("/")
        if top == folder and not name:  # the folder itself
            continue
        if top != folder or name.startswith(".") or not name.endswith(SUFFIX) or {"/", "\\"} & set(name):
            where = f"{archive.filename}: {member.filename}"
            raise DamagedFileError("A zip file of pictures holds something else.", where=where)
        found[name] = member
    if len(found) != count:
        raise DamagedFileError(
            "A zip file does not hold as many pictures as it should.",
            where=str(archive.filename),
            why=f"{len(found):,}, not {count:,}",
        )
    return found


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    """The sha256 of one picture, which is written unless it is there."""
    content = path.read_bytes() if path.is_file() else b""
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        content = read_member(archive, member.filename, MAX_PICTURE)
        temporary = path.with_name(f".{path.name}.tmp")  # a name that ``sweep`` knows
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as e:
            raise _no_room(str(path), e.strerror or str(e)) from None
    return hashlib.sha256(content).hexdigest()


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(str(folder), f"{needed:,} bytes are missing, {free:,} are free")


def _no_room(where: str, why: str) -> StorageError:
    todo = "Make room and run the same command again; what was unpacked is kept."
    return StorageError("Pictures cannot be unpacked.", where=where, why=why, todo=todo)
