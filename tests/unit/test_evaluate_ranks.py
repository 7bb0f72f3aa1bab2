"""Evaluation by several processes: the same images and features, bit for bit, and the same manifest.

This file is also what torchrun starts: every process of a launch runs ``work`` and writes what it saw.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import write_bundle
from test_ranks import launch
from tiny import CLASSES, IMAGE_SHAPE, data, network

from msd import ranks
from msd.bundle.bundle import Bundle
from msd.config import Compute, Protocol
from msd.evaluate.classifier import Classifier, save_classifier
from msd.evaluate.run import evaluate
from msd.plan import Node
from msd.store import Manifest

IMAGES, BATCH = 28, 5  # the last batch is smaller, and two or three processes get different shares
COMPUTE = Compute(threads=1, device="cpu")


def node_in(folder: Path) -> Node:
    """An evaluation of two students and all that it reads."""
    protocol = {
        "name": "fd_tiny",
        "images": IMAGES,
        "blocks": 2,
        "features": {"source": "file", "path": "x"},
        "neighbour_images": 20,
        "kid_subset": 10,
    }
    settings = {
        "protocol": Protocol.model_validate(protocol).model_dump(mode="json"),
        "batch_size": BATCH,
        "gallery_columns": 2,
    }
    bundle, inputs = Node("bundle", "bundles", "two", {}, {}, folder), {}
    for role in ("data", "features", "judge"):
        inputs[role] = Node(role, "made", role, {"role": role}, {}, folder)
    return Node("evaluate", "evaluation", "two", settings, {"bundle": bundle, **inputs}, folder, "two evaluation")


def prepare(folder: Path) -> Node:
    """Write what an evaluation reads."""
    node = node_in(folder)
    students = [network(0), network(1)]
    path = write_bundle(node.inputs["bundle"].manifest.parent, [[0, 2], [1, 3]], students)
    body = Manifest.read(path / "manifest.json")
    counts = dict.fromkeys(("parameters_per_student", "images_per_student", "images_total", "training_seconds"), 1)
    files = {name: body.file(name) for name in ("student-0", "student-1")}
    Manifest.write(body.path, kind="bundle", settings=body.settings, files=files, results=body.results | counts)
    real = data(60)
    where = node.inputs["data"].manifest
    where.parent.mkdir(parents=True)
    np.save(where.parent / "images.npy", real.images)
    np.save(where.parent / "labels.npy", real.labels)
    Manifest.write(
        where,
        kind="data",
        settings={},
        files={
            "evaluation-images": where.parent / "images.npy",
            "evaluation-labels": where.parent / "labels.npy",
        },
        results={"num_classes": CLASSES, "sha256": "of-no-importance", "images": {"evaluation": 60}},
    )
    for seed, role in enumerate(("features", "judge")):
        torch.manual_seed(seed)
        where = node.inputs[role].manifest
        save_classifier(Classifier(IMAGE_SHAPE, CLASSES, 4, 8), where.parent / "net.safetensors")
        Manifest.write(where, kind="classifier", settings={}, files={"weights": where.parent / "net.safetensors"})
    return node


def run(folder: Path) -> dict[str, Any]:
    """Evaluate, and record every image that this process drew and the features of all."""
    import msd.evaluate.sampling as sampling

    drawn: dict[int, torch.Tensor] = {}
    real_draw, real_join = sampling.draw, sampling._joined
    features: list[np.ndarray] = []

    def draw(bundle: Bundle, protocol: Protocol, first: int, count: int, device: torch.device) -> Any:
        images, asked = real_draw(bundle, protocol, first, count, device)
        drawn[first] = images.clone()
        return images, asked

    def joined(parts: list[Any]) -> Any:
        whole = real_join(parts)
        features.append(whole.features["fd_tiny"])
        return whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "draw", draw)
        patch.setattr(sampling, "_joined", joined)
        manifest = evaluate(node_in(folder), 2, COMPUTE, lambda *_: None)
    return {"drawn": drawn, "features": [torch.from_numpy(f) for f in features], "results": manifest.results}


def work(folder: Path) -> None:
    """What each process of a launch does."""
    torch.set_num_threads(1)
    torch.save(run(folder), folder / f"rank-{ranks.rank()}.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    prepare(folder)
    return run(folder)


def test_one_process_draws_whole_batches_of_both_blocks(alone: dict[str, Any]) -> None:
    starts = [*range(0, IMAGES, BATCH)]
    assert sorted(alone["drawn"]) == starts + [IMAGES + start for start in starts]
    assert sum(len(images) for images in alone["drawn"].values()) == 2 * IMAGES
    results = alone["results"]
    first, second = (block["fd_tiny"] for block in results["blocks"])
    assert first != second
    assert results["metrics"]["fd_tiny"] == pytest.approx((first + second) / 2)
    assert results["metrics"]["fd_tiny_minimum"] == min(first, second)
    assert {"precision", "recall", "kid", "asked_class_share"} <= set(results["metrics"])


@pytest.mark.parametrize("count", [2, 3])
def test_images_features_and_results_are_the_same_with_several(
    count: int, alone: dict[str, Any], tmp_path: Path
) -> None:
    prepare(tmp_path)
    seen = launch(count, tmp_path, __file__)
    drawn: dict[int, torch.Tensor] = {}
    for process in seen:
        assert process["drawn"]  # each had a share
        assert drawn.keys().isdisjoint(process["drawn"])
        drawn |= process["drawn"]
    assert drawn.keys() == alone["drawn"].keys()
    assert all(torch.equal(images, alone["drawn"][first]) for first, images in drawn.items())
    assert [len(process["features"]) for process in seen] == [2] + [0] * (count - 1)
    assert all(torch.equal(a, b) for a, b in zip(seen[0]["features"], alone["features"], strict=True))
    for process in seen:
        without = {key: value for key, value in process["results"].items() if key != "sampling_seconds"}
        assert without == {key: value for key, value in alone["results"].items() if key != "sampling_seconds"}


if __name__ == "__main__":
    work(Path(sys.argv[1]))
