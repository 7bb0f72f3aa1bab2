"""COCO 2014 for text to image: pictures, their captions, and the 30,000 captions of the usual evaluation.

Makes a folder of ``val2014/``, ``captions_val2014.json``, ``eval-30k.txt`` and, written last, ``manifest.json``, from
the official zip files, which are fetched (``msd.download``) and removed when they are unpacked. Nothing is decoded,
trained or measured here.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from msd.data.stream import Progress
from msd.data.unpack import unpack_pictures
from msd.data.zips import open_zip, read_member
from msd.download import fetch, forget
from msd.errors import DamagedFileError, MsdError
from msd.registry import UrlFile
from msd.store import Manifest, atomic_write, one_writer, sha256_file, write_text
from msd.text.formats import rows_of

MANIFEST = "manifest.json"
EVALUATION = "eval-30k.txt"
VALIDATION, TRAINING = "val2014", "train2014"
MAX_CAPTIONS = 2**28  # bytes; those of the training half have 2²⁶


@dataclass(frozen=True)
class Release:
    """What is fetched, and what must come of it.

    Attributes:
        pictures: half → a zip file of its pictures, and how many they are.
        annotations: a zip file with ``annotations/captions_<half>.json``.
        evaluation: how many captions the evaluation has.
        evaluation_sha256: of them, one a line.
    """

    pictures: Mapping[str, tuple[UrlFile, int]]
    annotations: UrlFile
    evaluation: int
    evaluation_sha256: str


COCO_URL = "http://images.cocodataset.org"  # its official address has no TLS; the digests vouch (docs/data.md)
COCO14 = Release(
    {
        VALIDATION: (
            UrlFile(f"{COCO_URL}/zips/val2014.zip", "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
            40_504,
        ),
        TRAINING: (
            UrlFile(
                f"{COCO_URL}/zips/train2014.zip", "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"
            ),
            82_783,
        ),
    },
    UrlFile(
        f"{COCO_URL}/annotations/annotations_trainval2014.zip",
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    30_000,
    "edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945",
)


def make_coco(
    folder: Path,
    release: Release,
    *,
    train: bool = False,
    keep_zips: bool = False,
    progress: Callable[[str], Progress],
) -> Manifest:
    """Make a folder, or what is missing of it; its manifest is written last.

    Args:
        release: ``COCO14``, but for tests.
        train: also the training half; once there, it belongs to the folder.
        keep_zips: leave the zip files in the download folder.
        progress: a half → what is told how many of its pictures are there.

    Raises:
        DownloadError: a zip file cannot be had, or is another one. What was received is kept.
        DamagedFileError, DataError, StorageError: a zip file cannot be unpacked, see ``unpack_pictures``; or the
            captions of the evaluation are not those that they should be.
    """
    with one_writer(folder, on_wait=lambda: print(f"waiting: another process makes {folder}", file=sys.stderr)):
        halves = [h for h in release.pictures if h == VALIDATION or train or _record(folder, h).exists()]
        used = list[Path]()
        records = {half: _make_half(folder, half, release, used, progress(half)) for half in halves}
        captions = {half: record.file("captions") for half, record in records.items()}
        evaluation = folder / EVALUATION
        if not _is(evaluation, release.evaluation_sha256):
            _write_evaluation(evaluation, captions[VALIDATION], release)
        settings = {half: record.settings for half, record in records.items()}
        results = {half: record.results for half, record in records.items()}
        for path in [] if keep_zips else dict.fromkeys(used):
            forget(path)
        known = _read(folder / MANIFEST)
        if known is not None and (known.settings, known.results) == (settings, results):
            return known
        return Manifest.write(
            folder / MANIFEST,
            kind="coco",
            settings=settings,
            inputs={half: record.path for half, record in records.items()},
            files={f"captions-{half}": path for half, path in captions.items()} | {"evaluation": evaluation},
            results=results,
        )


def evaluation_captions(captions: Path, count: int) -> str:
    """The list that DMD2 draws for: the first caption of each of the ``count`` images with the lowest ids.

    Captions stand as they are, spaces at their ends too; only a line's end within one becomes a space.
    """
    first: dict[int, str] = {}
    for row in rows_of(captions, "coco"):
        if isinstance(row.image_id, int) and isinstance(row.text, str):
            first.setdefault(row.image_id, row.text)
    return "".join(first[image].replace("\n", " ") + "\n" for image in sorted(first)[:count])


def _write_evaluation(path: Path, captions: Path, release: Release) -> None:
    lines = evaluation_captions(captions, release.evaluation)
    found = hashlib.sha256(lines.encode()).hexdigest()
    if found != release.evaluation_sha256:
        raise DamagedFileError(
            "The captions of the evaluation are not those that were published.",
            where=str(captions),
            why=f"its list has the sha256 {found[:16]}…, expected {release.evaluation_sha256[:16]}…",
            todo="Write the published list (captions_coco14_test.pkl of DMD2's release, one a line; docs/data.md) "
            f"to {path} and run the same command again.",
        )
    write_text(path, lines)


def _make_half(folder: Path, half: str, release: Release, used: list[Path], progress: Progress) -> Manifest:
    """The record of one half, whose pictures and captions are made unless they are there as it says.

    Args:
        used: the zip files that were needed are put to it.
    """
    (source, count), before = release.pictures[half], len(used)
    settings = {"pictures": asdict(source), "annotations": asdict(release.annotations)}
    pictures, captions = folder / half, folder / f"captions_{half}.json"
    record = _read(_record(folder, half))
    if record is not None and record.settings != settings:
        record = None
    there = record is not None and pictures.is_dir() and len(os.listdir(pictures)) == count
    if record is None or not _is(captions, record.sha256("captions")):
        used.append(fetch(release.annotations.url, release.annotations.sha256))
        _write_captions(used[-1], captions)
    if record is None or not there:
        used.append(fetch(source.url, source.sha256))
        results = {"images": count, "sha256": unpack_pictures(used[-1], pictures, count, progress)}
    else:
        results = record.results
    if len(used) > before or record is None:
        files = {"captions": captions}
        record = Manifest.write(
            _record(folder, half), kind="coco-half", settings=settings, files=files, results=results
        )
    return record


def _record(folder: Path, half: str) -> Path:
    """The proof that a half is whole. It is not the folder's manifest, which Snakemake removes before the rule runs."""
    return folder / f"{half}.{MANIFEST}"


def _write_captions(annotations: Path, path: Path) -> None:
    with open_zip(annotations) as archive:
        name = f"annotations/{path.name}"
        if name not in archive.namelist():
            raise DamagedFileError("A zip file of annotations lacks captions.", where=f"{annotations}: {name}")
        content = read_member(archive, name, MAX_CAPTIONS)
    with atomic_write(path, "wb") as f:
        f.write(content)


def _read(path: Path) -> Manifest | None:
    """A manifest; None if there is none that can be read, which is then made anew."""
    try:
        return Manifest.read(path)
    except MsdError:
        return None


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256
