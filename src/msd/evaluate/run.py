"""Score bundles, and real images as the floor: metrics and gallery."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd import ranks
from msd.bundle.bundle import Bundle
from msd.bundle.text import TextBundle, open_bundle
from msd.bundle.write import PROMPTS
from msd.config import Compute, Protocol
from msd.data.archive import open_half
from msd.data.grid import MAX_CLASSES
from msd.errors import ConfigError
from msd.evaluate.classifier import Classifier, load_classifier
from msd.evaluate.clip_score import open_clip_model
from msd.evaluate.confusion import likely_others
from msd.evaluate.matrix import balanced
from msd.evaluate.metrics import asked_class_share, classes_of_conditions
from msd.evaluate.protocol import Network, RealImages, Reference, Ruler, batches, summary
from msd.evaluate.reference import floor_in_files, reference_of
from msd.evaluate.sampling import Eyes, Score, Seen, check_belongs, draw, look_at, shown_classes
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


def evaluate(node: Node, gallery_columns: int, compute: Compute, progress: Progress) -> Manifest:
    """Score one variant's bundle against real images; processes that were started together share the drawing.

    Raises:
        ConfigError: the networks are not for these data; the number of images is not the same for every class, or too
            small for the gallery.
    """
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    ranks.join(device)
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    bundle, settings = open_bundle(node.inputs["bundle"].manifest.parent).to(device), node.settings
    protocol = Protocol.model_validate(settings["protocol"])
    _check(bundle, inputs["data"], protocol, gallery_columns, "judge" in inputs)
    ruler = ruler_of(node, inputs, protocol, device)
    eyes = Eyes(ruler.extractors, _judge(inputs, device), _clip(bundle, protocol, device))
    began = time.monotonic()
    shown = bundle.num_classes * gallery_columns if eyes.judge else 0
    seen = [
        look_at(bundle, protocol, b, eyes, settings["batch_size"], device, shown * (not b), progress)
        for b in range(protocol.blocks)
    ]
    seconds = time.monotonic() - began
    if ranks.is_first():
        blocks = [block for block in seen if block is not None]
        gallery = _gallery(bundle, protocol, blocks[0], gallery_columns, device)
        path = node.manifest.parent / "gallery.npy"
        write_with(path, lambda p: np.save(p, gallery))
        Manifest.write(
            node.manifest,
            kind="evaluate",
            settings=settings,
            inputs=node.input_paths,
            files={"gallery": path},
            results={
                "variant": node.name,
                **{key: bundle.manifest.results[key] for key in COPIED},
                **_results(blocks, ruler, inputs),
                "sampling_seconds": round(seconds, 2),
            },
        )
    ranks.from_first(True)  # the manifest is there
    return Manifest.read(node.manifest)


def evaluate_floor(node: Node, compute: Compute) -> Manifest:
    """Score the real training half against the real images of the protocol: no generator can be expected to do better.

    Where the reference is images in files, one half of these is scored against the other. The judge was trained on the
    training half, so its share of rightly judged images is that of the evaluation half.
    """
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    protocol = Protocol.model_validate(node.settings["protocol"])
    ruler = ruler_of(node, inputs, protocol, device)
    if protocol.reference.images is not None:
        scores, reference = floor_in_files(ruler, Path(protocol.reference.images))
        count, of = reference.images // 2, "half of the reference"
    else:
        reference = reference_of(ruler, inputs["data"])
        scores, count = _floor_of_halves(ruler, inputs["data"], reference.real)
        of = "training images"
    results: dict[str, Any] = {"metric": _record(ruler, inputs, reference) | {"images": count}, "of": of}
    if (judge := _judge(inputs, device)) is not None:
        judged = _judged(inputs["data"], judge)
        scores["asked_class_share"] = judged["share"]
        results |= {key: value for key, value in judged.items() if key != "share"}
    results["metrics"] = scores
    return Manifest.write(node.manifest, kind="floor", settings=node.settings, inputs=node.input_paths, results=results)


def _floor_of_halves(ruler: Ruler, data: Manifest, real: Mapping[str, RealImages]) -> tuple[dict[str, float], int]:
    """The half that is not the reference, the same number of each class; and how many images that is."""
    other = open_half(data, "train" if ruler.protocol.reference.half == "evaluation" else "evaluation")
    count = min(ruler.protocol.images, len(other.images))
    chosen = balanced(other.labels, other.num_classes, count // other.num_classes)
    features = {name: ruler.features(name, other.images[chosen]) for name in ruler.extractors}
    return ruler.scores(features, real), len(chosen)


def _judged(data: Manifest, judge: Classifier) -> dict[str, Any]:
    """What the judge says of held-out images."""
    held_out, class_of = open_half(data, "evaluation"), classes_of_conditions(data)
    shown = [shown_classes(torch.from_numpy(np.array(batch)), judge) for batch in batches(held_out.images)]
    share, per_class = asked_class_share(np.concatenate(shown), held_out.labels, class_of)
    return {
        "share": share,
        "asked_class_share_per_class": per_class,
        "judge_takes_for": likely_others(np.asarray(held_out.images), class_of[held_out.labels], judge),
    }


def _judge(inputs: dict[str, Manifest], device: torch.device) -> Classifier | None:
    return load_classifier(inputs["judge"].file("weights")).to(device) if "judge" in inputs else None


def ruler_of(node: Node, inputs: dict[str, Manifest], protocol: Protocol, device: torch.device) -> Ruler:
    """The protocol with the networks that a node reads."""
    roles = zip(protocol.spaces, ("features", "second-features"), strict=False)
    networks = {name: Network(inputs[role].file("weights"), inputs[role].sha256("weights")) for name, role in roles}
    return Ruler(protocol, networks, device, node.root / "state" / "reference")


def _clip(bundle: Bundle, protocol: Protocol, device: torch.device) -> Score | None:
    """The CLIP scores of a bundle's images, if they are asked for.

    Raises:
        ConfigError: the bundle knows classes, no prompts.
    """
    if protocol.clip is None:
        return None
    if not isinstance(bundle, TextBundle):
        raise ConfigError("Classes are no prompts.", where="evaluation.protocol.clip", todo="Set it to null.")
    score, known = open_clip_model(protocol.clip, device), bundle
    return lambda images, asked: score(images, known.prompts_of(asked))


def _record(ruler: Ruler, inputs: dict[str, Manifest], reference: Reference) -> dict[str, Any]:
    judge = inputs["judge"].sha256("weights") if "judge" in inputs else None
    asked = inputs["bundle"].sha256(PROMPTS) if judge is None and "bundle" in inputs else None
    return ruler.record(reference, judge_sha256=judge, prompts_sha256=asked)


def _results(blocks: list[Seen], ruler: Ruler, inputs: dict[str, Manifest]) -> dict[str, Any]:
    """Metrics: their means over the seed blocks, and each block's own."""
    reference = reference_of(ruler, inputs["data"])
    found = [ruler.scores(block.features, reference.real) for block in blocks]
    results: dict[str, Any] = {"metric": _record(ruler, inputs, reference)}
    if ruler.protocol.clip:
        for block, scores in zip(blocks, found, strict=True):
            scores["clip_score"] = block.clip / len(block.asked)
    if "judge" in inputs:
        class_of = classes_of_conditions(inputs["data"])
        for block, scores in zip(blocks, found, strict=True):
            scores["asked_class_share"] = asked_class_share(block.shown, block.asked, class_of)[0]
        shown, asked = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("shown", "asked"))
        results["asked_class_share_per_class"] = asked_class_share(shown, asked, class_of)[1]
        if "class_of" in inputs["data"].results:
            results["shuffled_prompts_share"] = _shuffled(shown, asked, class_of)
    return {**results, "metrics": summary(found, ruler.protocol.name), "blocks": found}


def _shuffled(shown: NDArray[np.int64], asked: NDArray[np.int64], class_of: NDArray[np.int64]) -> float:
    """The control: the share that the judge would find right if every image were drawn for another prompt.

    Prompts are handed on by half of their number, so an image is judged by a prompt of another class.
    """
    return asked_class_share(shown, (asked + len(class_of) // 2) % len(class_of), class_of)[0]


def _check(bundle: Bundle, data: Manifest, protocol: Protocol, columns: int, judged: bool) -> None:
    if protocol.reference.images is None:
        check_belongs(bundle, open_half(data, protocol.reference.half), judged)
    classes = bundle.num_classes
    uneven = protocol.labels == "balanced" and protocol.images * (1 if judged else protocol.blocks) % classes
    if uneven or (judged and protocol.images < classes * columns):
        raise ConfigError(
            "The number of evaluation images does not suit the classes.",
            where=f"evaluation.protocol.images: {protocol.images}",
            why=f"{classes} classes need the same number each, and at least {columns} for the gallery",
            todo=f"Choose a multiple of {classes}, at least {classes * columns}.",
        )


def _gallery(bundle: Bundle, protocol: Protocol, seen: Seen, columns: int, device: torch.device) -> NDArray[np.uint8]:
    """(classes, columns, C, H, W), from images that are there or drawn for it; of prompts, the first few."""
    rows = bundle.num_classes
    if len(seen.head) == rows * columns and protocol.labels == "balanced":
        return seen.head.reshape(columns, rows, *bundle.image_shape).swapaxes(0, 1)
    balanced, shown = protocol.model_copy(update={"labels": "balanced"}), min(rows, MAX_CLASSES)
    drawn = [draw(bundle, balanced, j * rows, rows if len(seen.head) else shown, device)[0] for j in range(columns)]
    return torch.stack(drawn, dim=1).cpu().numpy()
