"""Captions of labelled images: the images of a data set, labelled by the prompts that describe them. No PyTorch here.

The manifest is that of a data set whose classes are prompts, so all that measures by class measures by prompt.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from msd import store
from msd.config import ClassCaptions
from msd.errors import ConfigError
from msd.text.archive import PromptArchive, open_prompts, write_prompts

HALVES = ("train", "evaluation")


def caption_images(out: Path, settings: dict[str, Any], inputs: dict[str, Path]) -> store.Manifest:
    """Write the prompts, and for each image the number of its own, beside the manifest ``out``.

    Prompt c·T + t is template t of T with the name of class c; an image's template is drawn, the same in every run.

    Args:
        settings: ``config.ClassCaptions``.
        inputs: the manifest of the data under ``data``.

    Raises:
        ConfigError: there is not one name for each class, or two prompts are alike.
    """
    captions = ClassCaptions.model_validate(settings)
    data = store.Manifest.read(inputs["data"])
    names, classes = captions.names or data.results.get("class_names", []), data.results["num_classes"]
    if len(names) != classes:
        raise ConfigError(
            f"There are {len(names)} names for {classes} classes.",
            where="text.captions.names",
            todo="Give the name of every class, in their order.",
        )
    prompts = [template.replace("{}", name).strip() for name in names for template in captions.templates]
    lines = out.parent / "prompts.txt"
    store.write_text(lines, "".join(f"{prompt}\n" for prompt in prompts))
    archive = _archive(lines, out.parent / f"prompts-{store.digest(prompts, 8)}", len(prompts))
    files = {"prompts": archive.path}
    for half in HALVES:
        files[f"{half}-images"] = data.file(f"{half}-images")
        files[f"{half}-labels"] = out.parent / f"{half}-labels.npy"
        labels = np.load(data.file(f"{half}-labels"))
        template = np.random.default_rng(0).integers(0, len(captions.templates), len(labels))
        rows = labels * len(captions.templates) + template
        store.write_with(files[f"{half}-labels"], partial(np.save, arr=rows))
    results = {
        "sha256": store.digest({"data": data.results["sha256"], "prompts": prompts}),
        "num_classes": len(prompts),
        "image_shape": data.results["image_shape"],
        "images": data.results["images"],
        "class_names": prompts,
        "class_of": [c for c in range(classes) for _ in captions.templates],
        "classes": names,
    }
    return store.Manifest.write(out, kind="captions", settings=settings, inputs=inputs, files=files, results=results)


def prompts_of(captions: store.Manifest) -> PromptArchive:
    """The prompts that a manifest of captions names."""
    return open_prompts(store.Manifest.read(captions.file("prompts")))


def _archive(lines: Path, folder: Path, count: int) -> store.Manifest:
    path = folder / "manifest.json"
    archive = store.Manifest.read(path) if path.exists() else write_prompts(lines, folder)
    if archive.results["prompts"] != count:
        raise ConfigError(
            "Captions are alike.",
            where="text.captions",
            why=f"{count} were made, {archive.results['prompts']} of them differ",
            todo="Give each class a name of its own, and make the templates differ by more than spaces.",
        )
    return archive
