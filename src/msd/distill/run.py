"""Run one distillation stage of one student: read what the plan names, build the step, train, write the manifest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from msd.config import ANY_NETWORK, Adm, Compute, Dm, Training, Tsm
from msd.data.archive import Conditions
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep, Pairs
from msd.distill.dry_run import stage_footprint
from msd.distill.losses import Metric
from msd.distill.tsm import TsmStep
from msd.draws import Draws, stream_seed
from msd.errors import ConfigError
from msd.networks import Backbone, load_network, save_network
from msd.networks.discriminator import Discriminator
from msd.networks.files import described_network
from msd.networks.levers import prepare
from msd.networks.slicing import slice_into
from msd.partition.conditions import check_split
from msd.plan import Node
from msd.store import Manifest, read_json
from msd.training.engine import Progress, resolve_device
from msd.training.footprint import Footprint
from msd.training.inputs import Data, Inputs, network_for
from msd.training.job import Job, draws_of_process, run_job
from msd.training.micro_batch import micro_batch_here
from msd.weights import NETWORK_FORMAT, read_header


class _Inputs:
    """What a stage reads, opened on demand and verified."""

    def __init__(self, node: Node, compute: Compute, settings: Training) -> None:
        self.node, self.compute, self.settings = node, compute, settings
        self.device = resolve_device(compute.device)
        self.manifests = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
        self.opened = Inputs(self.manifests)

    def draws(self, micro_batch: int | None) -> Draws:
        seed = stream_seed(self.node.settings["seed"], self.node.kind, 0)
        return draws_of_process(seed, self.device, micro_batch)

    def network(self, role: str, name: str) -> Backbone:
        """A fresh copy of a network that an input made, ready to compute."""
        return self.ready(load_network(self.manifests[role].file(name)))

    def ready(self, net: Backbone) -> Backbone:
        """A network on the device, in the precision of the stage."""
        return prepare(net, self.device, self.settings.precision, self.compute)

    def micro_batch(self) -> int | None:
        """The one to begin with: as many images as the GPU should hold; None on the CPU."""

        def footprint() -> Footprint:
            path = self.manifests["teacher"].file("weights")
            teacher = described_network(read_header(path, NETWORK_FORMAT).description, path)
            network = self.node.settings["network"]
            student = ANY_NETWORK.validate_python(network) if network else teacher[0]
            return stage_footprint(self.settings, student, teacher, self.compute, gpu=True)

        return micro_batch_here(self.device, self.compute, self.settings.batch_size, footprint, self.node.label)

    @property
    def data(self) -> Data:
        return self.opened.data

    def parts(self) -> list[list[int]]:
        return read_json(self.manifests["partition"].file("partition"))["parts"]

    def part(self) -> list[int]:
        return self.parts()[self.node.settings["part"]]

    def weights(self) -> dict[str, dict[str, str]]:
        """Which bits the stage starts from: the sha256 of every network file among its inputs."""
        names = ("weights", "student", "student_raw", "fake_score", "pairs")
        return {
            role: {name: record["sha256"] for name, record in m.body["files"].items() if name in names}
            for role, m in self.manifests.items()
            if role in ("teacher", "before", "pairs")
        }


def run_tsm(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Teacher score matching of a network of another size, once for all its students."""
    settings = Tsm.model_validate(node.settings["recipe"])
    inputs = _Inputs(node, compute, settings)
    teacher, data = inputs.network("teacher", "weights"), inputs.data
    _check_belong(teacher, inputs.manifests)
    inputs.opened.check_teacher(teacher, inputs.manifests["teacher"])
    network = ANY_NETWORK.validate_python(node.settings["network"])
    student = network_for(network, data, stream_seed(node.settings["seed"], "initial-weights", 0))
    if settings.initial_weights == "sliced":
        slice_into(student, teacher)

    def make_step(micro_batch: int | None) -> TsmStep:
        return TsmStep(inputs.ready(copy.deepcopy(student)), teacher, data, settings, inputs.draws(micro_batch))

    job = Job(
        node=node,
        identity={**node.settings, "inputs": inputs.weights(), "data": data.sha256},
        images=settings.images,
        batch_size=settings.batch_size,
        make_step=make_step,
        save=save_network,
        results={"part": None, "parameters": student.num_parameters},
        micro_batch=inputs.micro_batch,
    )
    return run_job(job, compute, progress)


def run_dm(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Distribution matching of one student, from the teacher's weights or from TSM's."""
    settings = Dm.model_validate(node.settings["recipe"])
    inputs = _Inputs(node, compute, settings)

    def make_step(micro_batch: int | None) -> DmStep:
        return DmStep(*_networks(inputs), settings, inputs.draws(micro_batch), **_regression(inputs, settings))

    return run_job(_student_job(inputs, settings, make_step, {}), compute, progress)


def run_adm(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Adversarial distribution matching of one student, resumed from its DM stage."""
    settings = Adm.model_validate(node.settings["recipe"])
    inputs = _Inputs(node, compute, settings)
    data, real = inputs.data, inputs.data.indices_of(inputs.part())
    if not len(real):
        raise ConfigError("No training image belongs to the part.", where=node.label, why=f"part {inputs.part()[:5]} …")

    def make_step(micro_batch: int | None) -> AdmStep:
        student, teacher, fake_score, part = _networks(inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(node.settings["seed"], "discriminator-weights", 0))
            discriminator = Discriminator(*fake_score.features_shape).to(inputs.device)
        return AdmStep(
            student,
            teacher,
            fake_score,
            part,
            settings,
            inputs.draws(micro_batch),
            data=data,
            real=real,
            discriminator=discriminator,
            average=inputs.network("before", "student"),
            **_regression(inputs, settings),
        )

    return run_job(_student_job(inputs, settings, make_step, {"data": data.sha256}), compute, progress)


def _check_belong(teacher: Backbone, manifests: Mapping[str, Manifest], classes_too: bool = True) -> None:
    """Whether images, or latents, and classes are those of the teacher; prompts are checked with their encoder."""
    data, classes = manifests["data"].results, teacher.num_classes
    shape = tuple(data["image_shape"])
    if classes_too:
        classes = 1 if "embeddings" in manifests else data["num_classes"]
    if shape != teacher.image_shape or classes != teacher.num_classes:
        raise ConfigError(
            "The teacher and the data do not belong together.",
            where=str(manifests["teacher"].path),
            why=f"teacher: {teacher.image_shape}, {teacher.num_classes} classes; data: {shape}, {classes} (1: none)",
        )


def _networks(inputs: _Inputs) -> tuple[Backbone, Backbone, Backbone, Conditions]:
    """Student, teacher and fake score to start from, and the part's conditions."""
    teacher = inputs.network("teacher", "weights")
    inputs.opened.check_teacher(teacher, inputs.manifests["teacher"])
    if "embeddings" not in inputs.manifests:  # prompts can always be split
        check_split(teacher.num_conditions, len(inputs.parts()), str(inputs.manifests["teacher"].path))
    _check_belong(teacher, inputs.manifests, classes_too=False)  # one that is unconditional takes any
    if inputs.node.kind == "adm":
        student, fake_score = inputs.network("before", "student_raw"), inputs.network("before", "fake_score")
    else:
        student = (
            inputs.network("before", "student")
            if "before" in inputs.manifests
            else inputs.network("teacher", "weights")
        )
        fake_score = inputs.network("teacher", "weights")  # also for a smaller student
    return student, teacher, fake_score, inputs.opened.conditions(inputs.part())


def _student_job(
    inputs: _Inputs, settings: Dm, make_step: Callable[[int | None], DmStep], further_identity: dict[str, Any]
) -> Job:
    node, part = inputs.node, inputs.part()
    # the number of the part is no identity, its contents are: a part that a new partition leaves alone is found again
    identity = {key: value for key, value in node.settings.items() if key != "part"}
    source = inputs.manifests.get("before", inputs.manifests["teacher"])
    prompts = {"prompts": inputs.manifests["embeddings"].body["identity"]} if "embeddings" in inputs.manifests else {}
    return Job(
        node=node,
        identity={**identity, "classes": part, "inputs": inputs.weights(), **prompts, **further_identity},
        images=settings.images,
        batch_size=settings.batch_size,
        make_step=make_step,
        save=save_network,
        further=lambda step: {"student_raw": step.student, "fake_score": step.fake_score},
        results={**({} if prompts else {"part": part}), "parameters": source.results["parameters"]},
        micro_batch=inputs.micro_batch,
    )


def _regression(inputs: _Inputs, settings: Dm) -> dict[str, Any]:
    """Pairs of the regression loss, and the network that compares them where it is one."""
    if settings.regression is None:
        return {}
    pairs = load_file(inputs.manifests["pairs"].file("pairs"))
    if settings.regression.filtered:
        own = torch.isin(pairs["cond"], torch.tensor(inputs.part()))
        pairs = {name: tensor[own] for name, tensor in pairs.items()}
    return {
        "pairs": Pairs(**pairs),
        "metric": _metric(settings.regression.metric, inputs.device),
    }


def _metric(name: str, device: torch.device) -> Metric | None:
    if name != "lpips":
        return None
    from msd.distill.perceptual import Lpips

    return Lpips().to(device)
