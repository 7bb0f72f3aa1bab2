"""Score bundles, and real images as the floor: metrics and gallery."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd import ranks
from msd.bundle.bundle import Bundle
from msd.bundle.text import open_bundle
from msd.config import Compute, Protocol
from msd.data.archive import open_half
from msd.errors import ConfigError
from msd.evaluate.classifier import load_classifier
from msd.evaluate.confusion import likely_others
from msd.evaluate.matrix import balanced
from msd.evaluate.metrics import asked_class_share, classes_of_conditions
from msd.evaluate.protocol import Network, Ruler, batches, summary
from msd.evaluate.sampling import Seen, check_belongs, draw, look_at, shown_classes
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
    _check(bundle, inputs["data"], protocol, gallery_columns)
    ruler = ruler_of(node, inputs, protocol, device)
    judge = load_classifier(inputs["judge"].file("weights")).to(device)
    began = time.monotonic()
    shown = bundle.num_classes * gallery_columns
    seen = [
        look_at(bundle, protocol, b, ruler.extractors, judge, settings["batch_size"], device, shown * (not b), progress)
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

    The judge was trained on the training half, so its share of rightly judged images is that of the evaluation half.
    """
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    protocol = Protocol.model_validate(node.settings["protocol"])
    ruler = ruler_of(node, inputs, protocol, device)
    other = "train" if protocol.reference.half == "evaluation" else "evaluation"
    real, held_out = open_half(inputs["data"], other), open_half(inputs["data"], "evaluation")
    count = min(protocol.images, len(real.images))
    chosen = balanced(real.labels, real.num_classes, count // real.num_classes)
    features = {name: e.all_of(batches(real.images[chosen])) for name, e in ruler.extractors.items()}
    judge = load_classifier(inputs["judge"].file("weights")).to(device)
    judged = [shown_classes(torch.from_numpy(np.array(batch)), judge) for batch in batches(held_out.images)]
    class_of = classes_of_conditions(inputs["data"])
    share, per_class = asked_class_share(np.concatenate(judged), held_out.labels, class_of)
    record = _record(ruler, inputs) | {"images": len(chosen)}
    results = {
        "metric": record,
        "metrics": {**ruler.scores(features, _real(ruler, inputs)), "asked_class_share": share},
        "asked_class_share_per_class": per_class,
        "judge_takes_for": likely_others(np.asarray(held_out.images), class_of[held_out.labels], judge),
    }
    return Manifest.write(node.manifest, kind="floor", settings=node.settings, inputs=node.input_paths, results=results)


def ruler_of(node: Node, inputs: dict[str, Manifest], protocol: Protocol, device: torch.device) -> Ruler:
    """The protocol with the networks that a node reads."""
    roles = zip(protocol.spaces, ("features", "second-features"), strict=False)
    networks = {name: Network(inputs[role].file("weights"), inputs[role].sha256("weights")) for name, role in roles}
    return Ruler(protocol, networks, device, node.root / "state" / "reference")


def _real(ruler: Ruler, inputs: dict[str, Manifest]) -> dict[str, Any]:
    half = ruler.protocol.reference.half
    return ruler.of_half(open_half(inputs["data"], half).images, inputs["data"].sha256(f"{half}-images"))


def _record(ruler: Ruler, inputs: dict[str, Manifest]) -> dict[str, Any]:
    count = inputs["data"].results["images"][ruler.protocol.reference.half]
    return ruler.record(inputs["judge"].sha256("weights"), count)


def _results(blocks: list[Seen], ruler: Ruler, inputs: dict[str, Manifest]) -> dict[str, Any]:
    """Metrics: their means over the seed blocks, and each block's own."""
    real, class_of = _real(ruler, inputs), classes_of_conditions(inputs["data"])
    shares = [asked_class_share(block.shown, block.asked, class_of)[0] for block in blocks]
    found = [
        {**ruler.scores(block.features, real), "asked_class_share": share}
        for block, share in zip(blocks, shares, strict=True)
    ]
    shown, asked = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("shown", "asked"))
    return {
        "metric": _record(ruler, inputs),
        "metrics": summary(found, ruler.protocol.name),
        "blocks": found,
        "asked_class_share_per_class": asked_class_share(shown, asked, class_of)[1],
        **(
            {"shuffled_prompts_share": _shuffled(shown, asked, class_of)}
            if "class_of" in inputs["data"].results
            else {}
        ),
    }


def _shuffled(shown: NDArray[np.int64], asked: NDArray[np.int64], class_of: NDArray[np.int64]) -> float:
    """The control: the share that the judge would find right if every image were drawn for another prompt.

    Prompts are handed on by half of their number, so an image is judged by a prompt of another class.
    """
    return asked_class_share(shown, (asked + len(class_of) // 2) % len(class_of), class_of)[0]


def _check(bundle: Bundle, data: Manifest, protocol: Protocol, columns: int) -> None:
    check_belongs(bundle, open_half(data, protocol.reference.half))
    classes = bundle.num_classes
    uneven = protocol.labels == "balanced" and protocol.images % classes
    if uneven or protocol.images < classes * columns:
        raise ConfigError(
            "The number of evaluation images does not suit the classes.",
            where=f"evaluation.protocol.images: {protocol.images}",
            why=f"{classes} classes need the same number each, and at least {columns} for the gallery",
            todo=f"Choose a multiple of {classes}, at least {classes * columns}.",
        )


def _gallery(bundle: Bundle, protocol: Protocol, seen: Seen, columns: int, device: torch.device) -> NDArray[np.uint8]:
    """(classes, columns, C, H, W), from images that are there or, where their classes are random, drawn for it."""
    head = seen.head
    if protocol.labels != "balanced":
        balanced = protocol.model_copy(update={"labels": "balanced"})
        head = draw(bundle, balanced, 0, bundle.num_classes * columns, device)[0].cpu().numpy()
    return head.reshape(columns, bundle.num_classes, *bundle.image_shape).swapaxes(0, 1)
