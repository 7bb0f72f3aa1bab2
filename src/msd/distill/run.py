"""Run one distillation stage of one student: read what the plan names, build the step, train, write the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from msd.config import Adm, Compute, Dm, Network, Tsm
from msd.data.archive import LabelledImages, open_half
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep, Pairs
from msd.distill.tsm import TsmStep
from msd.draws import Draws, noise_of_images, stream_seed
from msd.errors import ConfigError
from msd.networks import Preconditioned, load_network, sample_teacher, save_network
from msd.networks.discriminator import Discriminator
from msd.networks.files import build_network
from msd.networks.slicing import slice_into
from msd.partition.conditions import check_split
from msd.plan import Node
from msd.store import Manifest, read_json, write_with
from msd.training.engine import Progress, resolve_device
from msd.training.job import Job, run_job


class _Inputs:
    """What a stage reads, opened on demand and verified."""

    def __init__(self, node: Node, compute: Compute) -> None:
        self.node, self.device = node, resolve_device(compute.device)
        self.manifests = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
        seed = node.settings.get("seed", 0)
        self.draws = Draws(stream_seed(seed, node.kind, 0), self.device)

    def network(self, role: str, name: str) -> Preconditioned:
        """A fresh copy of a network that an input made."""
        return load_network(self.manifests[role].file(name)).to(self.device)

    def train_half(self) -> LabelledImages:
        return open_half(self.manifests["data"], "train")

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
    inputs, settings = _Inputs(node, compute), Tsm.model_validate(node.settings["recipe"])
    teacher, data = inputs.network("teacher", "weights"), inputs.train_half()
    if data.image_shape != teacher.image_shape or data.num_classes != teacher.num_classes:
        raise ConfigError(
            "The teacher and the data do not belong together.",
            where=str(inputs.manifests["teacher"].path),
            why=f"teacher: {teacher.image_shape}, {teacher.num_classes} classes; "
            f"data: {data.image_shape}, {data.num_classes} classes",
        )
    student = build_network(
        Network.model_validate(node.settings["network"]),
        image_shape=teacher.image_shape,
        num_conditions=teacher.num_conditions,
        seed=stream_seed(node.settings["seed"], "initial-weights", 0),
    )
    if settings.initial_weights == "sliced":
        slice_into(student, teacher)

    def export(step: TsmStep, folder: Path) -> dict[str, Path]:
        return {"student": _save(step.ema.net, folder / "student.safetensors")}

    job = Job(
        node=node,
        identity={**node.settings, "inputs": inputs.weights(), "data": data.sha256},
        images=settings.images,
        make_step=lambda: TsmStep(student.to(inputs.device), teacher, data, settings, inputs.draws),
        export=export,
        results={"part": None, "parameters": student.num_parameters},
    )
    return run_job(job, compute, progress)


def run_dm(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Distribution matching of one student, from the teacher's weights or from TSM's."""
    inputs, settings = _Inputs(node, compute), Dm.model_validate(node.settings["recipe"])

    def make_step() -> DmStep:
        return DmStep(*_networks(inputs), settings, inputs.draws, pairs=_pairs(inputs, settings))

    return run_job(_student_job(inputs, settings, make_step, {}), compute, progress)


def run_adm(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Adversarial distribution matching of one student, resumed from its DM stage."""
    inputs, settings = _Inputs(node, compute), Adm.model_validate(node.settings["recipe"])
    data = inputs.train_half()

    def make_step() -> AdmStep:
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
            inputs.draws,
            data=data,
            discriminator=discriminator,
            average=inputs.network("before", "student"),
            pairs=_pairs(inputs, settings),
        )

    return run_job(_student_job(inputs, settings, make_step, {"data": data.sha256}), compute, progress)


def _networks(inputs: _Inputs) -> tuple[Preconditioned, Preconditioned, Preconditioned, torch.Tensor]:
    """Student, teacher and fake score to start from, and the part's conditions."""
    teacher = inputs.network("teacher", "weights")
    check_split(teacher.num_conditions, len(inputs.parts()), str(inputs.manifests["teacher"].path))
    if inputs.node.kind == "adm":
        student, fake_score = inputs.network("before", "student_raw"), inputs.network("before", "fake_score")
    else:
        student = (
            inputs.network("before", "student")
            if "before" in inputs.manifests
            else inputs.network("teacher", "weights")
        )
        fake_score = inputs.network("teacher", "weights")  # also for a smaller student
    return student, teacher, fake_score, torch.tensor(inputs.part())


def _student_job(inputs: _Inputs, settings: Dm, make_step: Any, further_identity: dict[str, Any]) -> Job:
    node, part = inputs.node, inputs.part()
    # the number of the part is no identity, its contents are: a part that a new partition leaves alone is found again
    identity = {key: value for key, value in node.settings.items() if key != "part"}

    def export(step: DmStep, folder: Path) -> dict[str, Path]:
        return {
            "student": _save(step.ema.net, folder / "student.safetensors"),
            "student_raw": _save(step.student, folder / "student-raw.safetensors"),
            "fake_score": _save(step.fake_score, folder / "fake-score.safetensors"),
        }

    source = inputs.manifests.get("before", inputs.manifests["teacher"])
    return Job(
        node=node,
        identity={**identity, "classes": part, "inputs": inputs.weights(), **further_identity},
        images=settings.images,
        make_step=make_step,
        export=export,
        results={"part": part, "parameters": source.results["parameters"]},
    )


def _save(net: torch.nn.Module, path: Path) -> Path:
    assert isinstance(net, Preconditioned)
    save_network(net, path)
    return path


def _pairs(inputs: _Inputs, settings: Dm) -> Pairs | None:
    if settings.regression is None:
        return None
    return Pairs(**load_file(inputs.manifests["pairs"].file("pairs")))


def make_pairs(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Regression pairs for all students, every class alike: noise and the teacher's deterministic sample for it."""
    torch.set_num_threads(compute.threads)
    inputs, settings = _Inputs(node, compute), node.settings
    teacher = inputs.network("teacher", "weights")
    count, batch = settings["pairs"], 250
    seed = stream_seed(settings["seed"], "pairs", 0)
    tensors: dict[str, list[torch.Tensor]] = {"noise": [], "images": [], "cond": []}
    for first in range(0, count, batch):
        n = min(batch, count - first)
        noise = noise_of_images(seed, first, n, teacher.image_shape)
        cond = torch.arange(first, first + n) % teacher.num_classes
        images = sample_teacher(teacher, noise.to(inputs.device), cond.to(inputs.device), settings["sampler"])
        for name, value in (("noise", noise), ("images", images.cpu()), ("cond", cond)):
            tensors[name].append(value)
        progress(first + n, count, {})
    path = node.manifest.parent / "pairs.safetensors"
    write_with(path, lambda p: save_file({name: torch.cat(t) for name, t in tensors.items()}, p))
    return Manifest.write(
        node.manifest,
        kind="pairs",
        settings=settings,
        inputs=node.input_paths,
        files={"pairs": path},
        results={"pairs": count},
    )
