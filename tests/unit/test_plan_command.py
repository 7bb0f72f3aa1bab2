"""`msd plan`, and the micro-batch that it and the jobs pick."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from tiny import ROOT

from msd import config
from msd.cli.gpus import GPUS, gpu_called
from msd.cli.main import main
from msd.config import Compute
from msd.distill import dry_run
from msd.distill import run as stages
from msd.distill.dry_run import stage_footprint
from msd.errors import ConfigError
from msd.plan import Plan
from msd.training.footprint import Footprint
from msd.training.ledger import Iteration
from msd.training.micro_batch import micro_batch_here, pick_micro_batch

GIB = 2**30
IMAGENET = ["--configfile", str(ROOT / "experiments/imagenet64.yaml"), "--params", str(ROOT / "params.yaml")]
DM_ONLY = ["--config", "variants={four: {students: 4, stages: [dm]}, long: {students: 1, images: 2, stages: [dm]}}"]


def once(count: Callable[..., Any]) -> Callable[..., Any]:
    """A function that counts a network, seconds for a large one; the same arguments are counted once."""
    known: dict[str, Any] = {}

    def counted(*arguments: Any, **named: Any) -> Any:
        key = f"{arguments} {named}"
        if key not in known:
            known[key] = count(*arguments, **named)
        return known[key]

    return counted


COUNTED = {name: once(getattr(dry_run, name)) for name in ("stage_footprint", "network_cost")}


def flat(networks: int, per_image: int) -> Footprint:
    values = torch.tensor([[networks], [per_image]], dtype=torch.float64).numpy()
    return Footprint(networks, 2 * (Iteration(1e13, values[0], values[1], 10),))


def test_the_largest_equal_part_that_fits() -> None:
    foot = flat(100, 10)
    assert pick_micro_batch(foot, 64, memory=math.ceil(740 / 0.9)) == 64
    assert pick_micro_batch(foot, 64, memory=math.ceil(730 / 0.9)) == 32
    assert pick_micro_batch(foot, 64, memory=math.ceil(330 / 0.9)) == 22  # of 64 in three parts
    assert pick_micro_batch(foot, 64, memory=math.ceil(330 / 0.9), processes=4) == 16
    assert pick_micro_batch(foot, 64, memory=math.ceil(120 / 0.9)) == 1
    with pytest.raises(ConfigError, match="one image at a time") as refused:
        pick_micro_batch(foot, 64, memory=math.ceil(119 / 0.9), where="dm of a")
    for word in ("dm of a", "gradient_checkpointing", "bfloat16", "more memory"):
        assert word in str(refused.value)


def test_jobs_pick_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(_: Any) -> Any:
        return SimpleNamespace(total_memory=math.ceil(330 / 0.9))

    monkeypatch.setattr(torch.cuda, "get_device_properties", device)
    cpu, cuda, foot = torch.device("cpu"), torch.device("cuda"), lambda: flat(100, 10)
    assert micro_batch_here(cuda, Compute(), 64, foot, "a") == 22
    assert micro_batch_here(cuda, Compute(micro_batch=5), 64, foot, "a") is None
    assert micro_batch_here(cpu, Compute(), 64, foot, "a") is None


def test_a_job_asks_for_the_networks_that_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, int]] = []

    def spy(device: Any, compute: Any, batch_size: int, footprint: Any, label: str) -> int:
        asked.append((label, batch_size, footprint().networks))
        return 16

    monkeypatch.setattr(stages, "micro_batch_here", spy)
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "protocols", "experiments", "resources"):
        Path(name).symlink_to(ROOT / name)
    short = ["recipe.tsm.images=32", "recipe.dm={images: 32, regression: null}"]
    short += ["variants={one: {students: 1, network: small, stages: [dm]}}"]
    options = [word for setting in short for word in ("--config", setting)]
    for command in (["data"], ["teacher"], ["partition", "--variant", "one"], ["tsm"], ["dm"]):
        assert main([*command, *options]) == 0
    plan = Plan(config.load("params.yaml", overrides=short))
    teacher, student = (plan.experiment.networks["small"].model_copy(update={"model_channels": c}) for c in (16, 12))
    described = (teacher, (1, 28, 28), 10)
    for label, batch_size, networks in asked:
        settings = plan.experiment.recipe.tsm if "tsm" in label else plan.experiment.recipe.dm
        assert batch_size == 32
        assert networks == stage_footprint(settings, student, described, Compute(), gpu=True).networks
    assert len(asked) == 2


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command; the networks of a configuration are counted once."""

    def call(*arguments: str) -> Any:
        assert main(["plan", *arguments, *IMAGENET]) == 0
        return json.loads(capsys.readouterr().out)

    for name, counted in COUNTED.items():
        monkeypatch.setattr(dry_run, name, counted)
    return call


def test_a_smaller_gpu_takes_smaller_parts(planned: Callable[..., Any]) -> None:
    large, small = (planned("--json", "--gpu", gpu, *DM_ONLY) for gpu in ("h200", "rtx4090"))
    (four, long), (on_small, _) = large["rows"], small["rows"]
    assert four["students"] == 4
    assert four["variants"] == ["four"]
    assert long["images"] == 2 * four["images"]
    assert four["micro_batch"] > on_small["micro_batch"] >= 1
    for row, gpu in ((four, "h200"), (on_small, "rtx4090")):
        assert row["fits"]
        assert row["memory_bytes"] < 0.9 * GPUS[gpu].memory_gib * GIB
    assert four["tflop"] == pytest.approx(4 * four["images"] * four["tflop_per_image"])
    assert four["hours"] == pytest.approx(four["tflop"] / 4 / (0.3 * 989.4) / 3600)
    assert large["total"]["gpu_hours"] == pytest.approx(4 * four["hours"] + long["hours"])
    assert large["total"]["students"] == 5


def test_gpus_share_a_batch(planned: Callable[..., Any]) -> None:
    (one, _), (four, _) = (planned("--json", "--gpu", "a100-80", "--gpus", n, *DM_ONLY)["rows"] for n in ("1", "4"))
    assert four["micro_batch"] <= 70  # of 280
    assert four["hours"] == pytest.approx(one["hours"] / 4)
    assert four["gpu_hours"] == pytest.approx(one["gpu_hours"])


def test_share_and_speed(planned: Callable[..., Any]) -> None:
    (a, _), (b, _), (c, _) = (
        planned("--json", "--gpu", "h200", *how, *DM_ONLY)["rows"]
        for how in (["--share", "0.6"], ["--tflops", "100"], [])
    )
    assert a["hours"] == pytest.approx(c["hours"] / 2)
    assert b["hours"] == pytest.approx(b["tflop"] / 4 / 100 / 3600)


def test_too_large_for_the_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "stage_footprint", lambda *_, **__: flat(40 * GIB, GIB))
    monkeypatch.setattr(dry_run, "network_cost", COUNTED["network_cost"])
    assert main(["plan", "--gpu", "v100-32", *IMAGENET]) == 2
    error = capsys.readouterr().err
    assert "dm of teacher on v100-32" in error
    assert "41.0 GiB are needed" in error
    assert "compute.gradient_checkpointing" in error
    assert main(["plan", "--gpu", "v100-32", *IMAGENET, "--config", "compute.micro_batch=4"]) == 0
    assert "! 44.00 GiB" in capsys.readouterr().out


def test_plan_without_a_gpu_knows_no_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(ROOT)
    variants = ["--config", "variants={a: {students: 2, network: small, stages: [dm]}, b: {model: teacher}}"]
    assert main(["plan", *variants]) == 0
    out = capsys.readouterr().out
    assert "1 × tsm small" in out
    assert "2 × dm small" in out
    assert "Time: unknown" in out
    assert main(["plan", "--json", "--tflops", "0.01", *variants]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["machine"]["name"] == "CPU"
    assert plan["machine"]["memory_bytes"] == psutil.virtual_memory().total
    assert [row["micro_batch"] for row in plan["rows"]] == [32, 32]  # the whole batch
    assert plan["rows"][1]["hours"] > 0


def test_gpus_are_known_by_what_their_driver_says() -> None:
    assert gpu_called("NVIDIA A100-SXM4-40GB", 42 * 10**9).bfloat16 == 312
    assert gpu_called("NVIDIA H100 80GB HBM3", 79 * GIB).memory_gib == 79
    assert gpu_called("NVIDIA GeForce RTX 4090", 24 * GIB).float32 == 82.6
    assert gpu_called("Another", GIB).bfloat16 is None
