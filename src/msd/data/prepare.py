"""A source → a training half and an evaluation half on disk. No PyTorch here: the job is short, its import is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msd.config import Data
from msd.data.images import ImageSource, Shaping, settle_classes
from msd.data.lmdb_rows import database_of, open_rows
from msd.data.sources import SOURCES, open_source
from msd.data.stream import Progress, Written, write_images
from msd.errors import DamagedFileError, DataError
from msd.store import Manifest, canonical_json, digest, sha256_file, verify_sha256, write_text

HALVES = ("train", "evaluation")


def evaluation_mask(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which images are held out: within each class, evenly spread over the source's order. (N,) bool."""
    mask = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        of_class = np.flatnonzero(labels == c)
        rank = np.arange(len(of_class))
        mask[of_class] = np.floor((rank + 1) * share) > np.floor(rank * share)
    return mask


def prepare(settings: Data, out: Path, progress: Progress | None = None) -> Manifest:
    """Write ``{train,evaluation}-{images,labels}.npy`` beside the manifest ``out``, one image in memory at a time.

    Where images have captions instead of classes, ``{train,evaluation}-captions.jsonl`` too.

    Raises:
        MissingFileError: the source does not exist.
        DataError, DamagedFileError: it is not as it should be; the first bad image is named.
    """
    if settings.source == "dmd2-latents":
        return _found_latents(settings, out)
    source = open_source(settings.source, settings.path or "", settings.classes)
    given = settings.evaluation_path is not None or SOURCES[settings.source].held_out is not None
    write = _take_given if given else _split
    written, counts = write(source, settings, out.parent, progress)
    results = {
        "sha256": written.sha256,
        "num_classes": source.num_classes,
        "image_shape": list(written.image_shape),
        "images": dict(zip(HALVES, counts, strict=True)),
    }
    if source.class_names:
        results["class_names"] = list(source.class_names)
    return Manifest.write(
        out, kind="data", settings=settings.model_dump(mode="json"), files=written.files, results=results
    )


def _found_latents(settings: Data, out: Path) -> Manifest:
    """Record DMD2's latents where they lie; they are the training half, and nothing is held out."""
    path = Path(settings.path or "")
    with open_rows(path) as rows:
        count, *shape = rows.shape("latents")
    database = database_of(path)
    if settings.sha256 is not None:
        verify_sha256(database, settings.sha256, todo="Fetch the latents again, or correct data.sha256.")
    sha256 = settings.sha256 or sha256_file(database)
    results = {"sha256": sha256, "num_classes": 1, "image_shape": shape, "images": {"train": count, "evaluation": 0}}
    files = {"latents": database}
    return Manifest.write(out, kind="data", settings=settings.model_dump(mode="json"), files=files, results=results)


def _split(
    source: ImageSource, settings: Data, folder: Path, progress: Progress | None
) -> tuple[Written, tuple[int, int]]:
    """Hold a share of each class out. Returns what was written and the images of each half."""
    mask = evaluation_mask(source.labels, settings.evaluation_share)
    counts = (int((~mask).sum()), int(mask.sum()))
    for half, count in zip(HALVES, counts, strict=True):
        if not count:
            raise DataError(
                f"The {half} half of the data is empty.",
                where="data.evaluation_share",
                why=str(settings.evaluation_share),
            )
    parts = {"train-": ~mask, "evaluation-": mask}
    return _write(source, settings, folder, parts, settings.sha256, progress), counts


def shaping_of(source: ImageSource, settings: Data) -> Shaping:
    """How images are changed on their way; those with captions become colour, as Stable Diffusion wants them."""
    return Shaping(rgb=bool(source.captions), resolution=settings.resolution)


def _write(
    source: ImageSource,
    settings: Data,
    folder: Path,
    parts: dict[str, NDArray[np.bool_]],
    expected: str | None,
    progress: Progress | None,
) -> Written:
    """The images of some parts, in colour where they have captions, and those captions as JSON lines."""
    shaping = shaping_of(source, settings)
    if not source.captions:
        return write_images(source, folder, parts, expected, shaping, progress)
    written = write_images(source, folder, parts, None, shaping, progress)
    sha256 = digest([written.sha256, source.captions])
    if expected not in (None, sha256):
        raise DamagedFileError(
            "The images or captions are not the ones that were meant.",
            where=source.where,
            why=f"the sha256 of their content is {sha256}, expected {expected}",
            todo="Fetch the data again, or correct `sha256`.",
        )
    files = dict(written.files)
    for part, mask in parts.items():
        files[f"{part}captions"] = folder / f"{part}captions.jsonl"
        said = (source.captions[i] for i in np.flatnonzero(mask))
        write_text(files[f"{part}captions"], "".join(canonical_json({"caption": text}) + "\n" for text in said))
    return Written(files, sha256, written.image_shape)


def _take_given(
    source: ImageSource, settings: Data, folder: Path, progress: Progress | None
) -> tuple[Written, tuple[int, int]]:
    """Train on all images of one source, evaluate on all of another or on the set's own test images.

    The digest is of both contents' digests.
    """
    classes = None if source.class_names else source.num_classes
    official = SOURCES[settings.source].held_out
    if official is None:
        given = open_source(settings.source, settings.evaluation_path or "", classes)
    else:
        given = settle_classes(official(), classes)
    if given.class_names != source.class_names:
        raise DataError(
            "The classes of the evaluation images are not those of the training images.",
            where=given.where,
            why=f"only in one: {sorted(set(given.class_names) ^ set(source.class_names))[:5]}",
            todo="Make the folders' names the same.",
        )
    parts = [
        _write(each, settings, folder, {name: np.ones(len(each), bool)}, sha256, progress)
        for each, name, sha256 in (
            (source, "train-", settings.sha256),
            (given, "evaluation-", settings.evaluation_sha256),
        )
    ]
    train, evaluation = parts
    if train.image_shape != evaluation.image_shape:
        raise DataError(
            "The evaluation images are not of the training images' shape.",
            where=given.where,
            why=f"{evaluation.image_shape}, not {train.image_shape} (channels, height, width)",
        )
    both = Written(train.files | evaluation.files, digest([train.sha256, evaluation.sha256]), train.image_shape)
    return both, (len(source), len(given))
