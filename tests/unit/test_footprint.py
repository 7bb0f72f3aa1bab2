"""What a stage is predicted to take, FLOPs and bytes, is what a real update takes."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import ADAM, BATCH, CLASSES, IMAGE_SHAPE, REGRESSION, STAGE, adm_step, data, dm_step, network, tsm_step
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from msd import config
from msd.config import Compute
from msd.distill.dry_run import flops_per_image, stage_footprint
from msd.distill.tsm import TsmStep
from msd.draws import Draws
from msd.networks.levers import prepare
from msd.teachers.step import TeacherStep
from msd.training.footprint import DryRun, Footprint
from msd.training.ledger import Ledger
from msd.training.step import Step

TSM = config.Tsm.model_validate({"images": 6 * BATCH, "batch_size": BATCH, "optimizer": ADAM})


def settings_of(stage: str, **changes: Any) -> config.Training:
    if stage == "tsm":
        return TSM.model_copy(update=changes)
    if stage == "dm":
        return config.Dm.model_validate(STAGE | changes)
    return config.Adm.model_validate(STAGE | {"discriminator": ADAM} | changes)


def architecture(**changes: Any) -> config.Network:
    return config.Network.model_validate(network(**changes).description["network"])


def footprint_of(
    settings: config.Training,
    student: config.Network | None = None,
    *,
    gpu: bool = False,
    **compute: Any,
) -> tuple[Footprint, float]:
    """Of a stage of the tiny networks, and its FLOPs per image."""
    teacher = (architecture(), IMAGE_SHAPE, CLASSES)
    student = student or architecture()
    footprint = stage_footprint(settings, student, teacher, Compute(**compute), gpu=gpu)
    return footprint, flops_per_image(settings, footprint, student, teacher)


def counted(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step(0)
    return counter.get_total_flops() / step.batch_size


def peak(make: Callable[[], Step], nets: Callable[[Any], list[torch.nn.Module]]) -> float:
    """Most bytes of tensors during an update, as torch's allocator reports them."""
    step = make()
    step(0)
    for net in step.networks().values():
        net.zero_grad(set_to_none=True)
    gc.collect()
    held = [t for net in nets(step) for t in (*net.parameters(), *net.buffers())]
    held += [t for ema in step.emas.values() for t in ema.averages]
    held += [t for updater in step.updaters.values() for t in (*updater._mean, *updater._square)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        step(0)
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return sum(t.nbytes for t in held) + most


@pytest.mark.parametrize(
    ("stage", "make", "changes"),
    [
        ("dm", dm_step, {}),
        ("dm", dm_step, {"strict_alternation": True}),
        ("dm", dm_step, {"two_time_scale_ratio": 1, "teacher_guidance": 1.5}),
        ("dm", dm_step, {"regression": REGRESSION}),
        ("adm", adm_step, {"discriminator_features": "fake_score"}),
        ("adm", adm_step, {"discriminator_features": "teacher"}),
        ("adm", adm_step, {"discriminator_features": "teacher", "strict_alternation": True, "r1_weight": 1.0}),
        ("adm", adm_step, {"divergence": "forward_kl", "two_time_scale_ratio": 5}),
    ],
)
def test_flops_are_those_of_a_real_update(stage: str, make: Any, changes: dict[str, Any]) -> None:
    real = make(**(changes | {"regression": True} if "regression" in changes else changes))
    assert footprint_of(settings_of(stage, **changes))[1] == pytest.approx(counted(real), rel=0.03)


def test_flops_of_a_smaller_student_and_of_a_teacher() -> None:
    student = architecture(model_channels=4)
    assert footprint_of(TSM, student)[1] == pytest.approx(counted(tsm_step()), rel=0.03)
    settings = config.TeacherTraining.model_validate(TSM.model_dump(include={"images", "batch_size", "optimizer"}))
    dry = DryRun(settings, Compute(), gpu=False)
    net = dry.network(architecture(), IMAGE_SHAPE, CLASSES)
    found = dry.measure(lambda: TeacherStep(net, dry.data(net), dry.settings, dry.draws))
    real = TeacherStep(network(), data(), settings, Draws(0))
    assert found.iterations[0].flops == pytest.approx(counted(real), rel=0.03)


def test_recomputation_takes_more_work_and_less_memory() -> None:
    plain, recomputed = footprint_of(TSM), footprint_of(TSM, gradient_checkpointing=True)
    student, teacher = (
        prepare(network(seed), torch.device("cpu"), "float32", Compute(gradient_checkpointing=True)) for seed in (2, 1)
    )
    assert recomputed[1] == pytest.approx(counted(TsmStep(student, teacher, data(), TSM, Draws(0))), rel=0.03)
    assert recomputed[1] > 1.1 * plain[1]
    assert recomputed[0].memory(1000, 1000) < 0.7 * plain[0].memory(1000, 1000)


def test_attention_counts_on_the_cpu_as_well() -> None:
    q, k, v = (torch.ones(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    with Ledger() as ledger:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert ledger.flops == (2 + 5) * 2 * 2 * 16 * 16 * 8  # products forwards and backwards, a multiply-add as two


@pytest.mark.parametrize(
    ("stage", "make", "nets"),
    [
        ("tsm", lambda: tsm_step(), lambda step: [step.student, step.teacher]),
        ("dm", lambda: dm_step(regression=True), lambda step: [step.student, step.teacher, step.fake_score]),
        ("adm", lambda: adm_step(), lambda step: [step.student, step.teacher, step.fake_score, step.discriminator]),
    ],
    ids=["tsm", "dm", "adm"],
)
def test_bytes_are_those_of_a_real_update(stage: str, make: Any, nets: Any) -> None:
    settings = settings_of(stage, **({"regression": REGRESSION} if stage == "dm" else {}))
    student = architecture(model_channels=4) if stage == "tsm" else None
    assert footprint_of(settings, student)[0].memory(BATCH, BATCH) == pytest.approx(peak(make, nets), rel=0.1)


@pytest.mark.parametrize("micro_batch", [8, 64])
def test_bytes_of_parts_of_a_batch(micro_batch: int) -> None:
    settings = TSM.model_copy(update={"batch_size": 64})

    def make() -> Step:
        return TsmStep(network(2), network(1), data(), settings, Draws(0, micro_batch=micro_batch))

    found = footprint_of(settings)[0].memory(micro_batch, 64)
    assert found == pytest.approx(peak(make, lambda step: [step.student, step.teacher]), rel=0.1)


def test_what_makes_memory_grow_or_shrink() -> None:
    plain, _ = footprint_of(TSM)
    several, _ = footprint_of(TSM.model_copy(update={"ema_halflife_images": [1.0, 2.0, 3.0]}))
    weights = 4 * network().num_parameters
    assert several.networks - plain.networks == pytest.approx(2 * weights, rel=0.03)  # a noise grid goes with each
    assert plain.memory(2, 4) == plain.memory(2, 2) + plain.iterations[0].gradients
    assert plain.memory(1, 4, processes=4) >= plain.networks + 2 * weights
    spread = dataclasses.replace(plain, sharded=True)
    assert spread.memory(2, 2) == plain.memory(2, 2)
    assert plain.memory(2, 8, processes=4) - spread.memory(2, 8, processes=4) >= 0.75 * plain.networks
    half = settings_of("dm", precision="bfloat16")
    on_cpu, on_gpu = (footprint_of(half, gpu=gpu)[0].memory(512, 512) for gpu in (False, True))
    assert on_cpu < on_gpu < footprint_of(settings_of("dm"), gpu=True)[0].memory(512, 512)
    on_fake, on_teacher = (
        footprint_of(settings_of("adm", discriminator_features=whose))[0].memory(512, 512)
        for whose in ("fake_score", "teacher")
    )
    assert on_fake != on_teacher


def test_lpips_is_planned_without_its_weights() -> None:
    lpips, l2 = (footprint_of(settings_of("dm", regression=REGRESSION | {"metric": m}))[0] for m in ("lpips", "l2"))
    assert lpips.networks - l2.networks == pytest.approx(4 * 14_714_688, rel=0.01)  # VGG16's convolutions
    assert lpips.memory(4, 4) > l2.memory(4, 4) + 4 * 100 * 2**20


def test_processes_that_train_together_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (settings_of("adm", divergence="forward_kl"), architecture(), (architecture(), IMAGE_SHAPE, CLASSES))
    alone = stage_footprint(*arguments, Compute(), gpu=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    together = stage_footprint(*arguments, Compute(), gpu=False)
    assert together.memory(2, 4) == alone.memory(2, 4)
