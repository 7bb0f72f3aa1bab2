"""Several weight averages of one training: a file for each, each with its own half-life, all of them resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import ADAM, BATCH, STAGE, adm_step, copies, dm_step, network, tsm_step

from msd import config
from msd.config import Compute
from msd.errors import InterruptedRun
from msd.networks import load_network, save_network
from msd.plan import Node
from msd.store import Manifest
from msd.training import checkpoint
from msd.training.ema import averages_of
from msd.training.job import Job, run_job
from msd.training.step import Step

UPDATES = 4
HALFLIVES = [4, 16, 0]  # images; 0: none
NAMES = ["student", "student_ema_16", "student_ema_0"]
COMPUTE = Compute(threads=1, log_every_updates=1, checkpoint_every_updates=1)


def several(**changes: Any) -> Step:
    return dm_step(ema_halflife_images=HALFLIVES, ema_rampup=0, **changes)


def job(folder: Path, make: Callable[[], Step] = several) -> Job:
    images = UPDATES * BATCH
    node = Node("dm", "train", "averages", {"images": images}, {}, folder, "tiny dm")
    return Job(
        node=node,
        identity={"images": images},
        images=images,
        batch_size=BATCH,
        make_step=lambda micro_batch: make(),
        save=save_network,
        further=lambda step: {"student_raw": step.student},
        results={},
    )


def followed(halflife: float) -> dict[str, torch.Tensor]:
    """The average of the student's weights over a run, worked out from its weights after every update."""
    step, beta = dm_step(), 0.5 ** (BATCH / halflife) if halflife else 0.0
    average = copies(step.student)
    for start in range(0, UPDATES * BATCH, BATCH):
        step(start)
        average = {name: beta * average[name] + (1 - beta) * p for name, p in copies(step.student).items()}
    return average


def close(net: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(p, expected[name], rtol=0, atol=1e-5) for name, p in net.named_parameters())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return run_job(job(tmp_path_factory.mktemp("averages")), COMPUTE, lambda *_: None)


def test_every_average_is_a_file_of_the_manifest(finished: Manifest) -> None:
    names = [name for name in finished.body["files"] if name.startswith("student")]
    assert sorted(names) == sorted([*NAMES, "student_raw"])
    assert finished.file("student").name == "student.safetensors"
    assert finished.file("student_ema_16").name == "student-ema-16.safetensors"
    assert len({finished.sha256(name) for name in names}) == 3  # all differ, apart from …
    assert finished.sha256("student_ema_0") == finished.sha256("student_raw")  # … the average that is none


@pytest.mark.parametrize(("name", "halflife"), list(zip(NAMES, HALFLIVES, strict=True)))
def test_every_average_follows_its_own_half_life(name: str, halflife: float, finished: Manifest) -> None:
    found, expected = load_network(finished.file(name)), followed(halflife)
    assert close(found, expected)
    for other in HALFLIVES:  # and the half-lives are far enough apart to tell
        assert other == halflife or not close(found, followed(other))


def test_the_first_one_is_what_it_would_be_alone(finished: Manifest, tmp_path: Path) -> None:
    alone = run_job(job(tmp_path, lambda: dm_step(ema_halflife_images=4, ema_rampup=0)), COMPUTE, lambda *_: None)
    assert [name for name in alone.body["files"] if "ema" in name] == []
    for name in ("student", "student_raw"):
        assert alone.sha256(name) == finished.sha256(name)


def test_all_are_in_the_checkpoint_and_a_resumed_run_has_the_same_files(finished: Manifest, tmp_path: Path) -> None:
    half = COMPUTE.model_copy(update={"max_kimg_this_run": UPDATES // 2 * BATCH / 1000})
    with pytest.raises(InterruptedRun):
        run_job(job(tmp_path), half, lambda *_: None)
    (folder,) = (tmp_path / "state").iterdir()
    state, _ = checkpoint.load_newest(folder)
    assert state is not None
    assert list(state["step"]["emas"]) == NAMES
    flat = [torch.cat([t.flatten() for t in ema["averages"]]) for ema in state["step"]["emas"].values()]
    assert not any(torch.equal(flat[i], flat[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    resumed = run_job(job(tmp_path), COMPUTE, lambda *_: None)
    assert {name: resumed.sha256(name) for name in NAMES} == {name: finished.sha256(name) for name in NAMES}


def test_averages_start_where_the_stage_before_ended() -> None:
    step = adm_step(ema_halflife_images=HALFLIVES)
    start = copies(network(4))  # what ``adm_step`` names as the average to start from
    assert list(step.emas) == NAMES
    for ema in step.emas.values():
        with ema.applied() as average:
            assert close(average, start)


def test_teachers_and_tsms_averages_are_named_alike() -> None:
    settings = config.Tsm.model_validate(
        {"images": BATCH, "batch_size": BATCH, "optimizer": ADAM, "ema_halflife_images": [8, 24.5], "ema_rampup": 0}
    )
    assert list(averages_of(network(1), settings, "weights")) == ["weights", "weights_ema_24.5"]
    step = tsm_step()
    step.emas = averages_of(step.student, settings, "student")
    step(0)
    one, other = (torch.cat([t.flatten() for t in ema.averages]) for ema in step.emas.values())
    assert not torch.equal(one, other)
    assert step.picture() is not None


def test_large_half_lives_keep_their_names_apart() -> None:
    """A name says the half-life in full, so that no average takes another's place."""
    halflives = [500_000, 1_000_000, 1_000_001, 12_345_678]
    settings = config.Dm.model_validate(STAGE | {"ema_halflife_images": halflives})
    names = list(averages_of(network(1), settings, "student"))
    assert names == ["student", "student_ema_1000000", "student_ema_1000001", "student_ema_12345678"]


@pytest.mark.parametrize(
    ("halflives", "message"),
    [
        ([], "one half-life or more"),
        ([8, 8], "each once"),
        ([8, 8.0], "each once"),
        ([8, -1], "greater than or equal to 0"),
        ([8, "long"], "valid number"),
        (-1, "greater than or equal to 0"),
    ],
)
def test_bad_lists_are_refused(halflives: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        config.Dm.model_validate(STAGE | {"ema_halflife_images": halflives})
    assert "ema_halflife_images" in str(refused.value)
