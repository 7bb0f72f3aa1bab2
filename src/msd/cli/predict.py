"""What training an experiment's students takes, predicted from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msd.config import ANY_NETWORK, Adm, Dm, StudentVariant, Training, Tsm
from msd.plan import Node, Plan
from msd.store import canonical_json

if TYPE_CHECKING:  # they import torch
    from msd.training.footprint import Footprint

SETTINGS: dict[str, type[Training]] = {"tsm": Tsm, "dm": Dm, "adm": Adm}


@dataclass(frozen=True)
class Machine:
    """What students are trained on.

    Attributes:
        name: of the device.
        gpu: whether it is one.
        memory_bytes: of one device.
        tflops: what one sustains in each precision; None: unknown.
        devices: that train one student together.
    """

    name: str
    gpu: bool
    memory_bytes: int
    tflops: dict[str, float | None]
    devices: int


@dataclass(frozen=True)
class Row:
    """Training that differs in the student's part at most.

    Attributes:
        stage, network, precision: what is trained.
        variants: rows of the ablation table that it is for.
        students: how many.
        images, batch_size: of the (student) updates of one.
        micro_batch: images at once on one device.
        memory_bytes: most on one device at once.
        fits: whether the device is to be trusted with them.
        tflop_per_image, tflop: of an image of one student, and of all students.
        hours, gpu_hours: of one student from start to end, and of all devices of all students; None: unknown.
    """

    stage: str
    network: str
    precision: str
    variants: tuple[str, ...]
    students: int
    images: int
    batch_size: int
    micro_batch: int
    memory_bytes: int
    fits: bool
    tflop_per_image: float
    tflop: float
    hours: float | None
    gpu_hours: float | None


@dataclass(frozen=True)
class _Alike:
    """Nodes that differ in the part at most."""

    network: str
    variants: dict[str, None]
    nodes: dict[str, Node]


def predict(plan: Plan, machine: Machine) -> Iterator[Row]:
    """Each distinct training of the students of an experiment, in the order of its variants and their stages.

    Raises:
        ConfigError: a GPU's memory does not suffice for one image at a time.
        MissingFileError, DataError, DamagedFileError, DownloadError, UnsafeFileError: see ``describe_teacher``.
    """
    from msd.distill.dry_run import flops_per_image, stage_footprint
    from msd.teachers.describe import describe_teacher
    from msd.training.micro_batch import fits, pick_micro_batch

    teacher, compute = describe_teacher(plan), plan.experiment.compute
    footprints: dict[str, Footprint] = {}  # trainings of different length have the same
    for group in _groups(plan):
        node = next(iter(group.nodes.values()))
        settings = SETTINGS[node.kind].model_validate(node.settings["recipe"])
        network = node.settings["network"]
        student = ANY_NETWORK.validate_python(network) if network else teacher[0]
        alike = canonical_json([node.kind, network, settings.model_dump(mode="json", exclude={"images"})])
        if alike not in footprints:
            footprints[alike] = stage_footprint(settings, student, teacher, compute, gpu=machine.gpu)
        footprint, batch = footprints[alike], settings.batch_size
        if compute.micro_batch is not None or not machine.gpu:  # as a job takes it, whether it fits or not
            whole = -(-batch // machine.devices)
            micro = min(compute.micro_batch or whole, whole)
        else:
            where = f"{node.kind} of {group.network} on {machine.name}"
            micro = pick_micro_batch(footprint, batch, machine.memory_bytes, machine.devices, where)
        memory, count = footprint.memory(micro, batch, machine.devices), len(group.nodes)
        per_image = flops_per_image(settings, footprint, student, teacher) / 1e12
        speed = machine.tflops[settings.precision]
        hours = None if speed is None else per_image * settings.images / speed / machine.devices / 3600
        yield Row(
            stage=node.kind,
            network=group.network,
            precision=settings.precision,
            variants=tuple(group.variants),
            students=count,
            images=settings.images,
            batch_size=batch,
            micro_batch=micro,
            memory_bytes=memory,
            fits=fits(memory, machine.memory_bytes),
            tflop_per_image=per_image,
            tflop=count * settings.images * per_image,
            hours=hours,
            gpu_hours=None if hours is None else count * machine.devices * hours,
        )


def _groups(plan: Plan) -> list[_Alike]:
    groups: dict[str, _Alike] = {}
    for name, variant in plan.experiment.variants.items():
        if not isinstance(variant, StudentVariant):
            continue
        for student in plan.variants[name].students:
            for node in student.stages:
                settings = {key: value for key, value in node.settings.items() if key != "part"}
                group = groups.setdefault(canonical_json([node.kind, settings]), _Alike(variant.network, {}, {}))
                group.variants[name] = None
                group.nodes[str(node.manifest)] = node
    return list(groups.values())
