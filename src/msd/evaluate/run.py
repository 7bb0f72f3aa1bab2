"""Score bundles, and real images as the floor: metrics and gallery."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd.bundle.bundle import Bundle
from msd.config import Compute
from msd.data.archive import LabelledImages, open_half
from msd.errors import ConfigError
from msd.evaluate.classifier import asked_class_share, load_classifier
from msd.evaluate.confusion import likely_others
from msd.evaluate.metrics import distances
from msd.evaluate.sampling import check_belongs, conditions_of_images, sample
from msd.plan import Node
from msd.store import Manifest, write_with
from msd.training.engine import Progress, resolve_device

COPIED = (
    "students",
    "parameters_per_student",
    "nfe",
    "images_per_student",
    "images_total",
    "training_seconds",
)


def _score(
    images: NDArray[np.uint8],
    asked: NDArray[np.int64],
    reference: LabelledImages,
    node: Node,
    judges: dict[str, Manifest],
) -> dict[str, Any]:
    name = node.settings["metric"]
    features, judge = judges["features"].file("weights"), judges["judge"].file("weights")
    share, per_class = asked_class_share(images, asked, load_classifier(judge))
    metrics = distances(images, np.asarray(reference.images), features, node.settings["neighbours"], name)
    return {
        "metric": {
            "name": name,
            "features_sha256": judges["features"].sha256("weights"),
            "judge_sha256": judges["judge"].sha256("weights"),
            "images": len(images),
            "reference_images": len(reference.images),
        },
        "metrics": {**metrics, "asked_class_share": share},
        "asked_class_share_per_class": per_class,
    }


def evaluate(node: Node, gallery_columns: int, compute: Compute, progress: Progress) -> Manifest:
    """Score one variant's bundle against the evaluation half.

    Raises:
        ConfigError: the networks are not for these data; the number of images is not the same for every class, or too
            small for the gallery.
    """
    torch.set_num_threads(compute.threads)
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    bundle, settings = Bundle(node.inputs["bundle"].manifest.parent), node.settings
    classes, images = bundle.num_classes, settings["images"]
    data = open_half(inputs["data"], "evaluation")
    check_belongs(bundle, data)
    if images % classes or images < classes * gallery_columns:
        raise ConfigError(
            "The number of evaluation images does not suit the classes.",
            where=f"evaluation.images: {images}",
            why=f"{classes} classes need the same number each, and at least {gallery_columns} for the gallery",
            todo=f"Choose a multiple of {classes}, at least {classes * gallery_columns}.",
        )
    began = time.monotonic()
    drawn = sample(bundle, images, settings["batch_size"], settings["seed"], resolve_device(compute.device), progress)
    seconds = time.monotonic() - began
    asked = conditions_of_images(0, images, classes).numpy()
    gallery = drawn[: classes * gallery_columns].reshape(gallery_columns, classes, *bundle.image_shape).swapaxes(0, 1)
    path = node.manifest.parent / "gallery.npy"
    write_with(path, lambda p: np.save(p, gallery))
    return Manifest.write(
        node.manifest,
        kind="evaluate",
        settings=settings,
        inputs=node.input_paths,
        files={"gallery": path},
        results={
            "variant": node.name,
            **{key: bundle.manifest.results[key] for key in COPIED},
            **_score(drawn, asked, data, node, inputs),
            "sampling_seconds": round(seconds, 2),
        },
    )


def evaluate_floor(node: Node) -> Manifest:
    """Score the real training half against the real evaluation half: no generator can be expected to do better.

    The judge was trained on the training half, so its share of rightly judged images is that of the evaluation half.
    """
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    real, reference = open_half(inputs["data"], "train"), open_half(inputs["data"], "evaluation")
    count = min(node.settings["images"], len(real.images))
    chosen = np.concatenate(
        [np.flatnonzero(real.labels == c)[: count // real.num_classes] for c in range(real.num_classes)]
    )
    results = _score(np.asarray(real.images[chosen]), real.labels[chosen], reference, node, inputs)
    judge = load_classifier(inputs["judge"].file("weights"))
    share, per_class = asked_class_share(np.array(reference.images), reference.labels, judge)
    results["metrics"]["asked_class_share"], results["asked_class_share_per_class"] = share, per_class
    results["judge_takes_for"] = likely_others(np.asarray(reference.images), reference.labels, judge)
    return Manifest.write(node.manifest, kind="floor", settings=node.settings, inputs=node.input_paths, results=results)
