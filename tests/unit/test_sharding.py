"""FSDP2: processes that hold only a share of each network train what one process with whole networks trains.

This file is also what torchrun starts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_ranks import CPU, launch
from tiny import BATCH, tensors
from torch import Tensor

from msd import ranks
from msd.config import Compute
from msd.distill.dm import DmStep
from msd.errors import InterruptedRun
from msd.networks import load_network, save_network
from msd.networks.levers import prepare
from msd.plan import Node
from msd.training.job import Job, draws_of_process, run_job, state_folder

UPDATES = 2
TOLERANCE = 1e-4  # of any weight or moment; found: 3e-5
STEPS: dict[str, Callable[[], DmStep]] = {
    "dm": partial(tiny.dm_step, regression=True, two_time_scale_ratio=2),
    "adm": partial(tiny.adm_step, divergence="jensen_shannon", two_time_scale_ratio=2, ema_halflife_images=[8.0, 16.0]),
}


def job(folder: Path, name: str, compute: Compute, made: list[DmStep]) -> Job:
    """A job whose networks are prepared as a stage prepares them; ``made`` gets its step."""
    network = tiny.network

    def make_step(micro_batch: int | None) -> DmStep:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "network", lambda *a, **k: prepare(network(*a, **k), CPU, "float32", compute))
            patch.setattr(tiny, "Draws", lambda seed: draws_of_process(seed, CPU, micro_batch))
            made.append(STEPS[name]())
        return made[-1]

    node = Node(name, "train", "one", {}, {}, folder, "tiny")
    return Job(node, {"images": UPDATES * BATCH}, UPDATES * BATCH, BATCH, make_step, save_network, {})


def train(folder: Path, name: str, shard: bool) -> dict[str, Any]:
    """One update, a stop, the other update: the final state, gathered, and which networks were spread."""
    compute = Compute(threads=1, device="cpu", log_every_updates=1, checkpoint_every_updates=1, shard=shard)
    short = compute.model_copy(update={"max_kimg_this_run": BATCH / 1000})
    made: list[DmStep] = []
    with pytest.raises(InterruptedRun):
        run_job(job(folder, name, short, []), short, lambda *_: None)
    run_job(job(folder, name, compute, made), compute, lambda *_: None)
    spread = {
        key: all(ranks.is_sharded(p) for p in net.parameters())
        for key, net in {**made[0].networks(), "teacher": made[0].teacher}.items()
    }
    return {"state": tensors(ranks.whole_state(made[0].state_dict())), "spread": spread}


def work(folder: Path) -> None:
    """What each process of a launch does."""
    torch.set_num_threads(1)
    found = {name: train(folder / name, name, shard=True) for name in STEPS}
    torch.save(found, folder / f"rank-{ranks.rank()}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def spread(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes ends with."""
    return launch(2, folder, __file__)


@pytest.mark.parametrize("name", STEPS)
def test_spread_networks_learn_what_whole_ones_do(name: str, folder: Path, spread: Any, tmp_path: Path) -> None:
    alone = train(tmp_path, name, shard=False)
    assert not any(alone["spread"].values())
    for found in (seen[name] for seen in spread):
        assert {key for key, is_spread in found["spread"].items() if is_spread} == {"student", "fake_score", "teacher"}
        assert found["state"].keys() == alone["state"].keys()
        for key, expected in alone["state"].items():
            assert torch.allclose(found["state"][key], expected, rtol=TOLERANCE, atol=TOLERANCE), key


@pytest.mark.parametrize("name", STEPS)
def test_whole_networks_are_exported(name: str, folder: Path, spread: Any) -> None:
    it = job(folder / name, name, Compute(), [])
    _, state = state_folder(it.node, it.identity)
    names = ["student"] if name == "dm" else ["student", "student_ema_16"]
    files = {key: state / f"{key.replace('_', '-')}.safetensors" for key in names}
    for key, file in files.items():
        parameters = list(load_network(file).parameters())
        averages = averages_of(spread[0][name]["state"], key)
        assert [p.shape for p in parameters] == [t.shape for t in averages]
        assert all(torch.equal(p.detach(), t) for p, t in zip(parameters, averages, strict=True))
    assert (state / "picture.png").exists()


def averages_of(state: dict[str, Tensor], name: str) -> list[Tensor]:
    """Of one average, in the order of the parameters."""
    prefix = f"/emas/{name}/averages/"
    found = {int(key.removeprefix(prefix)): t for key, t in state.items() if key.startswith(prefix)}
    return [found[i] for i in range(len(found))]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
