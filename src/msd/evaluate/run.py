"""Evaluate bundles: balanced conditions, noise tied to the image's index, metrics, gallery, latency."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd.bundle.bundle import Bundle
from msd.config import Compute
from msd.data.archive import LabelledImages, open_half, to_uint8
from msd.draws import noise_of_images
from msd.errors import ConfigError
from msd.evaluate.classifier import load_classifier
from msd.evaluate.metrics import METRIC_NAME, asked_class_share, distances
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


def conditions_of_images(first: int, count: int, num_conditions: int) -> torch.Tensor:
    """Conditions in exact balance: image i is asked for class i mod num_conditions. (count,) int64."""
    return torch.arange(first, first + count) % num_conditions


def sample(
    bundle: Bundle, images: int, batch_size: int, seed: int, device: torch.device, progress: Progress
) -> NDArray[np.uint8]:
    """Draw images 0 … images − 1 of a bundle. (images, C, H, W) uint8."""
    bundle.to(device)
    batches = []
    for first in range(0, images, batch_size):
        count = min(batch_size, images - first)
        noise = noise_of_images(seed, first, count, bundle.image_shape).to(device)
        cond = conditions_of_images(first, count, bundle.num_conditions).to(device)
        batches.append(to_uint8(bundle.generate(noise, cond)).cpu().numpy())
        progress(first + count, images, {})
    return np.concatenate(batches)


def _score(
    images: NDArray[np.uint8],
    asked: NDArray[np.int64],
    reference: LabelledImages,
    node: Node,
    judges: dict[str, Manifest],
) -> dict[str, Any]:
    features, judge = judges["features"].file("weights"), judges["judge"].file("weights")
    share, per_class = asked_class_share(images, asked, load_classifier(judge))
    metrics = distances(images, np.asarray(reference.images), features, node.settings["neighbours"])
    return {
        "metric": {
            "name": METRIC_NAME,
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
        ConfigError: the number of images is not the same for every class, or too small for the gallery.
    """
    torch.set_num_threads(compute.threads)
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    bundle, settings = Bundle(node.inputs["bundle"].manifest.parent), node.settings
    classes, images = bundle.num_conditions, settings["images"]
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
            **_score(drawn, asked, open_half(inputs["data"], "evaluation"), node, inputs),
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
    return Manifest.write(node.manifest, kind="floor", settings=node.settings, inputs=node.input_paths, results=results)


def measure_latency(node: Node, compute: Compute) -> Manifest:
    """Milliseconds to one image, batch 1, the variants in turn so that a disturbance meets all alike."""
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    bundles = {name: Bundle(n.manifest.parent).to(device) for name, n in node.inputs.items()}
    repeats, warm_up = node.settings["repeats"], 2
    times: dict[str, list[float]] = {name: [] for name in bundles}
    for i in range(repeats + warm_up):
        for name, bundle in bundles.items():
            noise = noise_of_images(0, i, 1, bundle.image_shape).to(device)
            cond = conditions_of_images(i, 1, bundle.num_conditions).to(device)
            began = time.perf_counter()
            bundle.generate(noise, cond).cpu()  # .cpu() waits for the device
            if i >= warm_up:
                times[name].append(1000 * (time.perf_counter() - began))
    return Manifest.write(
        node.manifest,
        kind="latency",
        settings=node.settings,
        inputs=node.input_paths,
        results={
            "variants": {
                name: {
                    "p50_ms": round(float(np.percentile(t, 50)), 3),
                    "p95_ms": round(float(np.percentile(t, 95)), 3),
                    "repeats": repeats,
                }
                for name, t in times.items()
            },
            "threads": compute.threads,
            "device": device.type,
            "batch_size": 1,
        },
    )
