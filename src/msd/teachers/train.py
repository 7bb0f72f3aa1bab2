"""Training of the teacher on the training half, with EDM's loss."""

from __future__ import annotations

import copy

from msd.config import ANY_NETWORK, Compute, TeacherTraining
from msd.draws import stream_seed
from msd.networks import save_network
from msd.networks.levers import prepare
from msd.plan import Node
from msd.store import Manifest
from msd.teachers.step import TeacherStep
from msd.training.engine import Progress, resolve_device
from msd.training.footprint import DryRun, Footprint
from msd.training.inputs import Inputs, network_for
from msd.training.job import Job, draws_of_process, run_job
from msd.training.micro_batch import micro_batch_here


def train_teacher(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Train the teacher on the training half."""
    data = Inputs({role: Manifest.read(n.manifest) for role, n in node.inputs.items()}).data
    settings = TeacherTraining.model_validate(node.settings["training"])
    seed, dropout = node.settings["seed"], node.settings.get("prompt_dropout", 0.0)
    network = ANY_NETWORK.validate_python(node.settings["network"])
    net = network_for(network, data, stream_seed(seed, "initial-weights", 0))

    device = resolve_device(compute.device)

    def make_step(micro_batch: int | None) -> TeacherStep:
        fresh = prepare(copy.deepcopy(net), device, settings.precision, compute)
        return TeacherStep(fresh, data, settings, draws_of_process(seed, device, micro_batch), dropout)

    def footprint() -> Footprint:
        run = DryRun(settings, compute, gpu=True)
        hollow = run.network(network, data.image_shape, net.num_conditions)
        return run.measure(lambda: TeacherStep(hollow, run.data(hollow), run.settings, run.draws))

    job = Job(
        node=node,
        identity={**node.settings, "data": data.sha256, "train_images": len(data)},
        images=settings.images,
        batch_size=settings.batch_size,
        make_step=make_step,
        save=save_network,
        results={"origin": {}, "parameters": net.num_parameters},
        micro_batch=lambda: micro_batch_here(device, compute, settings.batch_size, footprint, node.label),
    )
    return run_job(job, compute, progress)
