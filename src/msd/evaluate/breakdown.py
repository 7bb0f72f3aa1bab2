"""Break a variant down: every student on every part, each class, nearest training images, and pictures of both.

Every student keeps the full label input, so each is asked for every class, with the noise that ``evaluate`` uses. What
the owners of the classes drew are the images of the routed model: the matrix's diagonal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msd.bundle.bundle import Bundle
from msd.bundle.text import open_bundle
from msd.config import Compute, Protocol
from msd.data.archive import LabelledImages, open_half
from msd.data.grid import shown_classes as pictured
from msd.errors import ConfigError
from msd.evaluate.classifier import Classifier, load_classifier
from msd.evaluate.feature_space import features_of
from msd.evaluate.features import Extractor
from msd.evaluate.matrix import Labelled, Real, balanced, on_classes
from msd.evaluate.metrics import asked_class_share, classes_of_conditions
from msd.evaluate.nearest import Neighbours, Space, compare, nearest, pixels
from msd.evaluate.run import ruler_of
from msd.evaluate.sampling import check_belongs, conditions_of_images, shown_classes
from msd.evaluate.sampling import draw as draw_images
from msd.plan import Node
from msd.store import Manifest, write_with
from msd.training.engine import Progress, resolve_device

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """What the students of a bundle drew.

    Attributes:
        asked: class of each image (N,), balanced.
        owner: student of each class.
        features: of each student's images.
        right: (students, classes) share of the images that the judge takes for the class asked for.
        routed: (N, C, H, W) each image by the owner of its class.
        picture: (classes shown, students, columns, C, H, W).
    """

    asked: NDArray[np.int64]
    owner: NDArray[np.int64]
    features: list[NDArray[np.float64]]
    right: NDArray[np.float64]
    routed: Images
    picture: Images


def break_down(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Break one variant's bundle down.

    Raises:
        ConfigError: the networks are not for these data, or the number of images does not suit the classes.
        DataError: a class has fewer than two images in one of the halves.
    """
    began = time.monotonic()
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    bundle, settings = open_bundle(node.inputs["bundle"].manifest.parent).to(device), node.settings
    train, held_out = open_half(inputs["data"], "train"), open_half(inputs["data"], "evaluation")
    check_belongs(bundle, held_out)
    protocol = Protocol.model_validate(settings["protocol"])
    ruler = ruler_of(node, inputs, protocol, device)
    extractor = ruler.extractors[protocol.name]
    judge = load_classifier(inputs["judge"].file("weights")).to(device)
    class_of = classes_of_conditions(inputs["data"])
    drawn = draw(bundle, settings, extractor, judge, class_of, device, progress)
    close, triples = nearest_training_images(drawn, settings["nearest"], train, held_out, extractor)
    files = {name: node.manifest.parent / f"{name}.npy" for name in ("students", "nearest")}
    for path, array in zip(files.values(), (drawn.picture, triples), strict=True):
        write_with(path, partial(np.save, arr=array))
    return Manifest.write(
        node.manifest,
        kind="breakdown",
        settings=settings,
        inputs=node.input_paths,
        files=files,
        results={
            "variant": node.name,
            "metric": {
                "name": protocol.name,
                "features_sha256": inputs["features"].sha256("weights"),
                "judge_sha256": inputs["judge"].sha256("weights"),
            },
            **scores(drawn, train, held_out, extractor),
            "nearest": close,
            "shown_classes": pictured(bundle.num_classes),
            "seconds": round(time.monotonic() - began, 2),
        },
    )


def draw(
    bundle: Bundle,
    settings: dict[str, Any],
    extractor: Extractor,
    judge: Classifier,
    class_of: NDArray[np.int64],
    device: torch.device,
    progress: Progress,
) -> Drawn:
    """Let every student draw images of every class; only what is needed of them is kept.

    Raises:
        ConfigError: the number of images does not suit the classes.
    """
    images, classes, columns = settings["images"], bundle.num_classes, settings["columns"]
    if images % classes or images < classes * max(2, columns):
        raise ConfigError(
            "The number of images of the breakdown does not suit the classes.",
            where=f"evaluation.breakdown.images: {images}",
            why=f"{classes} classes need the same number each, at least 2, and {columns} for the picture",
            todo=f"Choose a multiple of {classes}, at least {classes * max(2, columns)}.",
        )
    students = len(bundle.networks)
    # every class as often, whatever the protocol draws
    protocol = Protocol.model_validate(settings["protocol"]).model_copy(update={"labels": "balanced"})
    asked = conditions_of_images(0, images, classes).numpy()
    owner = bundle.router.owner.cpu().numpy()
    routed, features, right, picture = np.empty((images, *bundle.image_shape), np.uint8), [], [], []
    for k in range(students):
        parts = []
        for first in range(0, images, settings["batch_size"]):
            count = min(settings["batch_size"], images - first)
            parts.append(draw_images(bundle, protocol, first, count, device, student=k)[0])
            progress(k * images + first + count, students * images, {})
        shown = np.concatenate([shown_classes(part, judge) for part in parts])
        drawn = torch.cat(parts).cpu().numpy()
        mine = owner[asked] == k
        routed[mine] = drawn[mine]
        features.append(features_of(drawn, extractor))
        right.append(asked_class_share(shown, asked, class_of)[1])
        picture.append(drawn.reshape(-1, classes, *bundle.image_shape)[:columns, pictured(classes)])
    return Drawn(asked, owner, features, np.array(right), routed, np.stack(picture).transpose(2, 0, 1, 3, 4, 5))


def scores(drawn: Drawn, train: LabelledImages, held_out: LabelledImages, extractor: Extractor) -> dict[str, Any]:
    """The matrix by part, the routed model by class, and the routed model as a whole.

    Raises:
        DataError: a class has fewer than two images in one of the halves.
    """
    classes = len(drawn.owner)
    chosen = balanced(train.labels, classes, len(drawn.asked) // classes)
    real = Real(
        held_out=Labelled(features_of(held_out.images, extractor), held_out.labels, "held-out images"),
        training=Labelled(features_of(train.images[chosen], extractor), train.labels[chosen], "training images"),
    )
    by_student = [Labelled(f, drawn.asked, f"images of student {k}") for k, f in enumerate(drawn.features)]
    own_features = np.stack(drawn.features)[drawn.owner[drawn.asked], np.arange(len(drawn.asked))]
    routed = Labelled(own_features, drawn.asked, "routed images")
    parts = [np.flatnonzero(drawn.owner == k).tolist() for k in range(len(drawn.features))]
    own = drawn.right[drawn.owner, np.arange(classes)]
    one: list[dict[str, Any]] = []
    for group in [*([c] for c in range(classes)), list(range(classes))]:
        found = on_classes([routed], group, real)
        one.append(found | {"distance": found["distance"][0], "asked_class_share": float(own[group].mean())})
    return {
        "parts": [
            on_classes(by_student, part, real) | {"asked_class_share": drawn.right[:, part].mean(axis=1).tolist()}
            for part in parts
        ],
        "classes": [found | {"student": int(drawn.owner[c])} for c, found in enumerate(one[:-1])],
        "routed": one[-1],
    }


def nearest_training_images(
    drawn: Drawn, count: int, train: LabelledImages, held_out: LabelledImages, extractor: Extractor
) -> tuple[dict[str, Any], Images]:
    """Look up the nearest training image of about ``count`` routed and held-out images, in pixels and in features.

    Returns:
        The comparison, and (classes shown, 3, C, H, W): of each class the image that is nearest to a training image by
        pixels, then its nearest by pixels and by features.
    """
    classes = len(drawn.owner)
    per_class = max(1, min(count, len(drawn.asked)) // classes)
    generated = drawn.routed[: per_class * classes]
    real = held_out.images[balanced(held_out.labels, classes, per_class)]

    def in_features(images: Images) -> Tensor:
        return torch.from_numpy(features_of(images, extractor)).float()

    spaces: dict[str, Space] = {"pixels": pixels, "features": in_features}
    found: dict[str, Neighbours] = {}
    results: dict[str, Any] = {"images": len(generated), "held_out_images": len(real)}
    for name, space in spaces.items():
        both = nearest(np.concatenate([generated, real]), train.images, space)
        found[name], others = both.split(len(generated))
        results[name] = compare(found[name], others)
    suspects = found["pixels"].distance.reshape(per_class, classes).argmin(axis=0) * classes + np.arange(classes)
    suspects = suspects[pictured(classes)]
    columns = [generated[suspects], *(train.images[found[name].index[suspects]] for name in spaces)]
    return results, np.stack(columns, axis=1)
