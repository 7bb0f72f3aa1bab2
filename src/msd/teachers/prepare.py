"""The teacher: fetched and verified, or trained on the training half with EDM's loss."""

from __future__ import annotations

from pathlib import Path

import torch

from msd.config import Compute, Network, TeacherTraining
from msd.data.archive import open_half
from msd.draws import Draws, stream_seed
from msd.networks import EDMPrecond, load_network, save_network
from msd.networks.files import build_network
from msd.networks.sources import fetch_weights
from msd.plan import Node
from msd.store import Manifest
from msd.teachers.step import TeacherStep
from msd.training.engine import Progress, resolve_device
from msd.training.job import Job, run_job


def prepare_teacher(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Write the teacher's manifest.

    Raises:
        MissingFileError, DamagedFileError, DownloadError: see ``networks.sources``.
    """
    if node.settings["source"] != "train":
        path, origin = fetch_weights(node.settings)
        net = load_network(path)
        return Manifest.write(
            node.manifest,
            kind="teacher",
            settings=node.settings,
            files={"weights": path},
            results={"origin": origin, **_describe(net)},
        )
    return _train(node, compute, progress)


def _describe(net: EDMPrecond) -> dict[str, object]:
    return {"parameters": net.num_parameters, "image_shape": list(net.image_shape), "num_classes": net.num_conditions}


def _train(node: Node, compute: Compute, progress: Progress) -> Manifest:
    data = open_half(Manifest.read(node.inputs["data"].manifest), "train")
    settings = TeacherTraining.model_validate(node.settings["training"])
    seed = node.settings["seed"]
    net = build_network(
        Network.model_validate(node.settings["network"]),
        image_shape=data.image_shape,
        num_conditions=data.num_classes,
        seed=stream_seed(seed, "initial-weights", 0),
    )

    def make_step() -> TeacherStep:
        device: torch.device = resolve_device(compute.device)
        return TeacherStep(net.to(device), data, settings, Draws(seed, device))

    def export(step: TeacherStep, folder: Path) -> dict[str, Path]:
        path = folder / "weights.safetensors"
        assert isinstance(step.ema.net, EDMPrecond)
        save_network(step.ema.net, path)
        return {"weights": path}

    job = Job(
        node=node,
        identity={**node.settings, "data": data.sha256, "train_images": len(data.labels)},
        images=settings.images,
        make_step=make_step,
        export=export,
        results={"origin": {}, **_describe(net)},
    )
    return run_job(job, compute, progress)
