"""Captions that come with the data, and further prompts without images: one archive of them all. No PyTorch here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd import store
from msd.config import DataCaptions
from msd.data.lmdb_rows import database_of
from msd.errors import MissingFileError
from msd.text.archive import PromptArchive, archive_prompts, open_prompts
from msd.text.formats import Row, rows_of
from msd.text.prompts import PromptReport, cleaned, decoded, key_of

NO_CAPTION = -1  # the number of an image whose caption is empty or no text
IMAGES = ("train-images", "latents")  # what the data have of the two


def collect_captions(out: Path, settings: dict[str, Any], inputs: dict[str, Path]) -> store.Manifest:
    """Write all prompts, each once, and for each training image the number of its own, beside the manifest ``out``.

    Args:
        settings: ``config.DataCaptions``.
        inputs: the manifest of the data under ``data``.

    Raises:
        MissingFileError, DamagedFileError, DataError, UnsafeFileError: the further prompts cannot be read.
    """
    spec, data = DataCaptions.model_validate(settings), store.Manifest.read(inputs["data"])
    further = Path(spec.prompts) if spec.prompts else None
    sha256 = _sha256_of(further, spec.prompts_sha256) if further else ""
    source = store.digest([data.results["sha256"], sha256])
    folder = out.parent / f"prompts-{source[:8]}"
    if (folder / "manifest.json").exists():
        prompts = store.Manifest.read(folder / "manifest.json")
    else:
        report, rows = PromptReport(), chain(_of_images(data), rows_of(further) if further else ())
        about = {"source": f"{data.settings['source']}, {spec.prompts}" if spec.prompts else data.settings["source"]}
        found = cleaned(rows, report, about["source"])
        prompts = archive_prompts(found, report, folder, settings=about, source_sha256=source)
    numbers = _numbers(data, open_prompts(prompts))
    path = out.parent / "train-labels.npy"
    store.write_with(path, partial(np.save, arr=numbers))
    images = {name: data.file(name, verify=False) for name in IMAGES if name in data.body["files"]}
    return store.Manifest.write(
        out,
        kind="captions",
        settings=settings,
        inputs=inputs,
        files={"prompts": prompts.path, "train-labels": path, **images},
        results={
            "sha256": store.digest([prompts.results["sha256"], data.results["sha256"]]),
            "num_classes": prompts.results["prompts"],
            "image_shape": data.results["image_shape"],
            "images": {"train": len(numbers)},
            "without_caption": int((numbers == NO_CAPTION).sum()),
            "report": prompts.results["report"],
        },
    )


def _of_images(data: store.Manifest) -> Iterator[Row]:
    """The caption of every training image, in their order."""
    if "train-captions" in data.body["files"]:
        return rows_of(data.file("train-captions"))
    return rows_of(data.file("latents", verify=False), format="lmdb")


def _numbers(data: store.Manifest, prompts: PromptArchive) -> NDArray[np.int64]:
    """The number (N,) of each training image's caption among the prompts; a hash of each is in memory."""
    texts = (decoded(row.text) for row in _of_images(data))
    keys = [key_of(text) if text and text.strip() else b"" for text in texts]
    wanted = set(keys)
    number = {key: i for i, prompt in enumerate(prompts) if (key := key_of(prompt.text)) in wanted}
    return np.array([number.get(key, NO_CAPTION) for key in keys], dtype=np.int64)


def _sha256_of(path: Path, expected: str | None) -> str:
    if not path.exists():
        raise MissingFileError("The prompts do not exist.", where=str(path), todo="Check text.captions.prompts.")
    if expected is not None:
        store.verify_sha256(database_of(path), expected, todo="Fetch them again, or correct text.captions.")
    return expected or store.sha256_file(database_of(path))
