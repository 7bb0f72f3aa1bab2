"""Processes that train together, and micro-batches: every split of a batch sees its rows and ends where one pass does.

This file is also what torchrun starts: every process of a launch runs ``work`` and writes what it saw.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ADAM, BATCH, adm_step, data, dm_step, network, tensors, tsm_step
from torch import Tensor

from msd import ranks
from msd.config import ClassifierTraining, Compute, TeacherTraining
from msd.draws import BatchDraws, Draws
from msd.errors import MsdError
from msd.evaluate.classifier import ClassifierStep, new_classifier
from msd.networks import save_network
from msd.plan import Node
from msd.teachers.step import TeacherStep
from msd.training import checkpoint, journal
from msd.training.job import Job, draws_of_process, run_job
from msd.training.step import Step

UPDATES = 2
TOLERANCE = 3e-3  # share of the way that weights have gone; found: at most 3e-4
CPU = torch.device("cpu")
COMPUTE = Compute(threads=1, device="cpu", log_every_updates=1, checkpoint_every_updates=1)
STEPS: dict[str, Callable[[], Step]] = {
    "tsm": tsm_step,
    "dm": partial(dm_step, regression=True, two_time_scale_ratio=2),
    "adm": partial(adm_step, divergence="jensen_shannon", two_time_scale_ratio=2),
}
TOO_SMALL = partial(dm_step, batch_size=2)
Seen = dict[tuple[str, int, int], list[Tensor]]


@contextlib.contextmanager
def recorded() -> Iterator[Seen]:
    """(role, first image, size of the batch) → the rows that are drawn of it, in order."""
    seen: Seen = {}
    real = BatchDraws._of_whole

    def of_whole(self: BatchDraws, role: str, draw: Callable[[], Tensor]) -> Tensor:
        rows = real(self, role, draw)
        seen.setdefault((role, self.index, self._count), []).append(rows.clone())
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchDraws, "_of_whole", of_whole)
        yield seen


def train(folder: Path, make: Callable[[], Step], progress: Callable[..., None] = lambda *_: None) -> dict[str, Any]:
    """Run a real job: its final state, what was drawn, and the error that it ended with, if any."""
    steps: list[Step] = []

    def make_step(micro_batch: int | None) -> Step:
        steps.append(make())
        steps[0].draws = draws_of_process(0, CPU, micro_batch)  # type: ignore[attr-defined]
        return steps[0]

    size = make().batch_size
    node = Node("dm", "train", "one", {}, {}, folder, "tiny")
    job = Job(node, {"images": UPDATES * size}, UPDATES * size, size, make_step, save_network, {})
    error = None
    with recorded() as seen:
        try:
            run_job(job, COMPUTE, progress)
        except MsdError as e:
            error = [type(e).__name__, e.exit_code, str(e)]
    state = tensors(steps[0].state_dict()) if steps else {}
    return {"state": state, "seen": seen, "error": error, "done": node.manifest.exists(), "pid": os.getpid()}


def work(folder: Path) -> None:
    """What each process of a launch does, one job after another."""
    torch.set_num_threads(1)
    me, found = ranks.rank(), {}
    for name, make in STEPS.items():
        found[name] = train(folder / name, make)
    if ranks.world() == 2:

        def interrupt(done: int, *_: Any) -> None:
            if me == 1 and done == BATCH:
                os.kill(os.getpid(), signal.SIGTERM)

        found["stopped"] = train(folder / "stopped", STEPS["dm"], interrupt)
        if me == 0:
            for copy in ("by-1", "by-3"):
                shutil.copytree(folder / "stopped", folder / copy)
        found["resumed"] = train(folder / "stopped", STEPS["dm"])
    else:
        found["resumed"] = train(folder.parent / "2" / "by-3", STEPS["dm"])
        found["too small"] = train(folder / "small", TOO_SMALL)
    torch.save(found, folder / f"rank-{me}.pt")


def launch(count: int, folder: Path, script: str = __file__) -> list[dict[str, Any]]:
    """Start torchrun on this machine; what each of its processes saw."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "--nproc-per-node", str(count), script, str(folder)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes, which would wait for each other for days
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    return [torch.load(folder / f"rank-{r}.pt") for r in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """What one process does."""
    return {name: train(folder / "1" / name, make) for name, make in STEPS.items()}


@pytest.fixture(scope="module")
def together(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What two and three processes do."""
    return {count: launch(count, folder / str(count)) for count in (2, 3)}


each = pytest.mark.parametrize(("name", "count"), [(name, count) for name in STEPS for count in (2, 3)])


def difference(one: dict[str, Tensor], other: dict[str, Tensor], make: Callable[[], Any]) -> float:
    """Between two states' networks and averages, as a share of how far they have moved; of the worst of them."""
    start = tensors(make().state_dict())
    assert one.keys() == other.keys() == start.keys()
    shares = []
    for net in {name.rsplit("/", 1)[0] for name in start if name.startswith(("/networks", "/emas"))}:
        names = [name for name in start if name.startswith(f"{net}/")]
        apart, moved = (torch.cat([(t[n] - one[n]).flatten() for n in names]).norm() for t in (other, start))
        shares.append(float(apart / moved))
    return max(shares)


def same_draws(parts: list[Seen], whole: Seen) -> None:
    """The rows of all parts, in order, are those of the whole batch; there are no others."""
    assert set().union(*parts) == whole.keys()
    for key, (rows,) in whole.items():
        assert torch.equal(torch.cat([r for part in parts for r in part.get(key, [])]), rows), key


@each
def test_every_process_sees_its_rows_of_the_same_draws(name: str, count: int, alone: Any, together: Any) -> None:
    parts, whole = [seen[name]["seen"] for seen in together[count]], alone[name]["seen"]
    same_draws(parts, whole)
    noise = [key for key in whole if key[0] == "noise" and key[2] == BATCH]
    assert {key[1] for key in noise} >= {0, BATCH}
    assert all(
        len(part[key][0]) == ((r + 1) * BATCH // count - r * BATCH // count)
        for key in noise
        for r, part in enumerate(parts)
    )


@each
def test_weights_are_alike_on_all_processes_and_near_those_of_one(
    name: str, count: int, alone: Any, together: Any
) -> None:
    first, *others = [seen[name]["state"] for seen in together[count]]
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(t, other[key]) for key, t in first.items())
    assert difference(first, alone[name]["state"], STEPS[name]) < TOLERANCE


@each
def test_first_process_alone_writes_and_its_losses_are_those_of_the_batch(
    name: str, count: int, folder: Path, alone: Any, together: Any
) -> None:
    (mine,), (one,) = ((folder / str(n) / name / "state").iterdir() for n in (count, 1))
    events = list(journal.read(mine / "events.jsonl"))
    assert {e["attempt"].split("-")[1] for e in events} == {str(together[count][0][name]["pid"])}
    assert [e["processes"] for e in events if e["event"] == "start"] == [count]
    assert sum(e["event"] == "checkpoint" for e in events) == UPDATES
    assert sorted(p.name for p in mine.iterdir()) == sorted(p.name for p in one.iterdir())
    found, expected = (journal.metrics(path / "events.jsonl") for path in (mine, one))
    assert found.keys() == expected.keys()
    for nimg, metrics in expected.items():
        for metric in metrics.keys() - {"sample_spread"}:
            assert found[nimg][metric] == pytest.approx(metrics[metric], rel=1e-3, abs=1e-6), (nimg, metric)


def test_spread_of_the_samples_does_not_depend_on_the_split() -> None:
    """The warning of a collapse looks at it: a micro-batch of one image is no collapse."""
    spreads = []
    for micro_batch in (None, 1):
        step = dm_step()
        step.draws.micro_batch = micro_batch
        spreads.append(float(step(0)["sample_spread"]))
    assert spreads[1] == pytest.approx(spreads[0], rel=1e-3)


def test_signal_to_one_process_stops_all_at_the_same_update(folder: Path, together: Any) -> None:
    errors = [seen["stopped"]["error"] for seen in together[2]]
    assert [e[:2] for e in errors] == 2 * [["InterruptedRun", 75]]
    assert ["another process" in errors[0][2], "SIGTERM" in errors[1][2]] == [True, True]
    assert all(seen["stopped"]["state"]["/updaters/student/counts"].max() == 1 for seen in together[2])
    (state,) = (folder / "2" / "stopped" / "state").iterdir()
    events = list(journal.read(state / "events.jsonl"))
    assert [e["nimg"] for e in events if e["event"] in ("interrupted", "finish")] == [BATCH, UPDATES * BATCH]
    assert [(seen["stopped"]["done"], seen["resumed"]["done"]) for seen in together[2]] == 2 * [(False, True)]


def test_checkpoint_of_two_processes_is_resumed_by_any_number(folder: Path, alone: Any, together: Any) -> None:
    uninterrupted = together[2][0]["dm"]["state"]
    for seen in together[2]:
        assert all(torch.equal(t, uninterrupted[key]) for key, t in seen["resumed"]["state"].items())
    by_one = train(folder / "2" / "by-1", STEPS["dm"])
    for found in (by_one, *(seen["resumed"] for seen in together[3])):
        assert found["error"] is None
        assert min(index for _, index, _ in found["seen"]) == 2 * BATCH  # two iterations are one update
        assert difference(found["state"], alone["dm"]["state"], STEPS["dm"]) < TOLERANCE
    for copy, count in (("by-1", 1), ("by-3", 3)):
        (state,) = (folder / "2" / copy / "state").iterdir()
        starts = [e for e in journal.read(state / "events.jsonl") if e["event"] == "start"]
        assert [(e["nimg"], e["processes"]) for e in starts] == [(0, 2), (BATCH, count)]


def test_batch_smaller_than_the_number_of_processes_is_refused_by_all(together: Any) -> None:
    for seen in together[3]:
        assert seen["too small"]["error"][:2] == ["ConfigError", 2]
        assert "A batch of 2 cannot be shared by 3 processes." in seen["too small"]["error"][2]


def test_leftovers_of_a_killed_run_may_be_removed_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes read the checkpoint at the same time."""
    checkpoint.save(tmp_path, BATCH, {"nimg": BATCH})
    leftover, glob = tmp_path / ".4711.checkpoint-000000000008.pt", Path.glob
    leftover.write_bytes(b"half")

    def glob_of_the_slower(self: Path, pattern: str) -> list[Path]:
        found = list(glob(self, pattern))
        leftover.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "glob", glob_of_the_slower)
    assert checkpoint.load_newest(tmp_path) == ({"nimg": BATCH}, [])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, None])
@pytest.mark.parametrize(("count", "further"), [(3, 8), (4, 5), (5, 3), (8, 7)])
def test_parts_of_a_batch_and_of_one_that_goes_with_it_are_whole(
    world: int, micro_batch: int | None, count: int, further: int
) -> None:
    """Each part is small enough and has images; none of the further batch (pairs, say) is lost."""
    parts = [
        part for r in range(world) for part in Draws(1, rank=r, world=world, micro_batch=micro_batch).batches(40, count)
    ]
    assert all(0 < part.size <= (micro_batch or count) for part in parts)
    assert [part.first for part in parts] == [40 + sum(p.size for p in parts[:i]) for i in range(len(parts))]
    (whole,) = Draws(1).batches(40, count)
    for size in (count, further):
        sized = [part.sized(size) for part in parts]
        assert sum(part.share for part in sized) == pytest.approx(1)
        found = torch.cat([part.normal("x", (2,)) for part in sized])
        assert torch.equal(found, whole.sized(size).normal("x", (2,)))


def teacher_step() -> TeacherStep:
    settings = {"images": 24, "batch_size": BATCH, "optimizer": ADAM, "flip": True}
    return TeacherStep(network(1), data(), TeacherTraining.model_validate(settings), Draws(0))


def classifier_step() -> ClassifierStep:
    settings = {"images": 24, "batch_size": BATCH, "optimizer": ADAM, "width": 4, "features": 8}
    training = ClassifierTraining.model_validate(settings)
    return ClassifierStep(new_classifier(data(), training), data(), training, Draws(0))


@pytest.mark.parametrize("batch_size", [4, 8])
@pytest.mark.parametrize(
    "make", [*STEPS.values(), teacher_step, classifier_step], ids=[*STEPS, "teacher", "classifier"]
)
def test_micro_batches_change_neither_draws_nor_weights(make: Callable[[], Any], batch_size: int) -> None:
    def run(micro_batch: int | None) -> tuple[Seen, dict[str, Tensor]]:
        step = make()
        step.batch_size, step.draws = batch_size, Draws(0, micro_batch=micro_batch)
        with recorded() as seen:
            for start in range(0, 2 * batch_size, batch_size):
                step(start)
        return seen, tensors(step.state_dict())

    whole, expected = run(None)
    for micro_batch in (1, 2, 3):
        seen, state = run(micro_batch)
        assert max(len(rows) for rows in seen[next(iter(whole))]) <= micro_batch
        same_draws([seen], whole)
        assert difference(state, expected, make) < TOLERANCE


if __name__ == "__main__":
    work(Path(sys.argv[1]))
