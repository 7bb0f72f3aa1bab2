"""Training of the two classifiers of the metric."""

from __future__ import annotations

import copy
from pathlib import Path

from msd.config import ClassifierTraining, Compute
from msd.data.archive import open_half
from msd.evaluate.classifier import ClassifierStep, accuracy, load_classifier, new_classifier, save_classifier
from msd.plan import Node
from msd.store import Manifest
from msd.training.engine import Progress, resolve_device
from msd.training.job import Job, draws_of_process, run_job


def train_classifier(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Train a classifier on the training half and say how good it is on held-out images."""
    data_manifest = Manifest.read(node.inputs["data"].manifest)
    data = open_half(data_manifest, "train")
    settings = ClassifierTraining.model_validate(node.settings["training"])
    net = new_classifier(data, settings)
    parameters = sum(p.numel() for p in net.parameters())

    def make_step(micro_batch: int | None) -> ClassifierStep:
        device = resolve_device(compute.device)
        draws = draws_of_process(settings.seed, device, micro_batch)
        return ClassifierStep(copy.deepcopy(net).to(device), data, settings, draws)

    def measure(files: dict[str, Path]) -> dict[str, float]:
        held_out = open_half(data_manifest, "evaluation")
        return {"accuracy_on_evaluation_half": accuracy(load_classifier(files["weights"]), held_out)}

    job = Job(
        node=node,
        identity={"training": node.settings["training"], "data": data.sha256, "train_images": len(data.labels)},
        images=settings.images,
        batch_size=settings.batch_size,
        make_step=make_step,
        save=save_classifier,
        results={"origin": {}, "parameters": parameters},
        measure=measure,
    )
    return run_job(job, compute, progress)
