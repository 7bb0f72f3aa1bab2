"""Training of the teacher on the training half, with EDM's loss."""

from __future__ import annotations

from pathlib import Path

from msd.config import Compute, Network, TeacherTraining
from msd.data.archive import open_half
from msd.draws import Draws, stream_seed
from msd.networks import Preconditioned, save_network
from msd.networks.files import build_network
from msd.plan import Node
from msd.store import Manifest
from msd.teachers.step import TeacherStep
from msd.training.engine import Progress, resolve_device
from msd.training.job import Job, run_job


def train_teacher(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Train the teacher on the training half."""
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
        device = resolve_device(compute.device)
        return TeacherStep(net.to(device), data, settings, Draws(seed, device))

    def export(step: TeacherStep, folder: Path) -> dict[str, Path]:
        path = folder / "weights.safetensors"
        assert isinstance(step.ema.net, Preconditioned)
        save_network(step.ema.net, path)
        return {"weights": path}

    job = Job(
        node=node,
        identity={**node.settings, "data": data.sha256, "train_images": len(data.labels)},
        images=settings.images,
        make_step=make_step,
        export=export,
        results={"origin": {}, "parameters": net.num_parameters},
    )
    return run_job(job, compute, progress)
