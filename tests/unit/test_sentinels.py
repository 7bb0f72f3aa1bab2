"""Numbers that are no numbers, memory that does not suffice, values that warn: the run says so and goes on, or ends."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import hidden, nothing, quick_job, quick_step, state_of
from PIL import Image
from test_engine import UPDATES, Acting, equal, events
from test_job import COMPUTE, run
from tiny import BATCH, adm_step, copies, dm_step, draws_of, images_and_conditions, tensors, tsm_step

from msd.distill.tsm import TsmStep
from msd.errors import DivergedError, InterruptedRun, OutOfMemoryError
from msd.networks import load_network
from msd.store import read_json
from msd.training import checkpoint, engine
from msd.training.engine import Hooks, Schedule, train
from msd.training.job import run_job
from msd.training.step import Step

AT = 2  # the update, counted from 0, that something happens in
SCHEDULE = Schedule(images=4 * BATCH, log_every=1, checkpoint_every=1, give_up_after=3)
NAN = float("nan")


class Spoiler:
    """Puts one NaN into a tensor that it is shown, once whenever it is armed, or always from then on."""

    def __init__(self, forever: bool = False) -> None:
        self.armed, self.forever = False, forever

    def arm(self) -> None:
        self.armed = True

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.armed:
            return tensor
        self.armed = self.forever
        factors = torch.ones_like(tensor)
        factors.view(-1)[0] = NAN
        return factors * tensor


def spoil_loss(step: Any, spoil: Spoiler) -> None:
    name = "_terms" if isinstance(step, TsmStep) else "_student_terms"
    real = getattr(step, name)

    def terms(*arguments: Any) -> Any:
        losses, values = real(*arguments)
        return {name: spoil(loss) for name, loss in losses.items()}, values

    setattr(step, name, terms)


def spoil_gradient(name: str) -> Callable[[Any, Spoiler], None]:
    def spoil_it(step: Any, spoil: Spoiler) -> None:
        list(step.networks()[name].parameters())[-1].register_hook(spoil)

    return spoil_it


def spoil_noise(step: Any, spoil: Spoiler) -> None:
    real = step.draws.normal
    step.draws.normal = lambda role, *rest: spoil(real(role, *rest)) if role == "noise" else real(role, *rest)


def spoil_data(step: Any, spoil: Spoiler) -> None:
    real = step.fetch

    def fetch(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = real(*arguments)
        return spoil(images), labels

    step.fetch = fetch


def spoiled(make: Callable[[], Step], how: Callable[[Any, Spoiler], None], forever: bool = False) -> Any:
    """A step with a NaN in one update, or in all from that one on."""
    step, spoil = make(), Spoiler(forever)
    how(step, spoil)
    return Acting(step, AT, spoil.arm)


def optimiser_state(updater: Any) -> dict[str, torch.Tensor]:
    """Weights, moments and step counts."""
    lists = {"mean": updater._mean, "square": updater._square, "steps": updater._steps}
    return copies(updater.net) | {name: t.clone() for name, t in tensors(lists).items()}


def watch(step: Any) -> list[tuple[str, set[str]]]:
    """Every update of a network as it comes: its name, and which parts of its state it changed."""
    seen: list[tuple[str, set[str]]] = []
    for name, updater in step.updaters.items():

        def apply(name: str = name, updater: Any = updater, real: Callable[[], None] = updater.apply) -> None:
            before = optimiser_state(updater)
            real()
            after = optimiser_state(updater)
            seen.append((name, {part for part, t in after.items() if not torch.equal(t, before[part])}))

        updater.apply = apply
    return seen


dm, adm = (partial(make, two_time_scale_ratio=2) for make in (dm_step, adm_step))
FAULTS: dict[str, tuple[Callable[[], Step], Callable[[Any, Spoiler], None], set[str]]] = {
    "loss": (dm, spoil_loss, {"student"}),
    "noise": (dm, spoil_noise, {"student", "fake_score"}),
    "student": (dm, spoil_gradient("student"), {"student"}),
    "fake score": (dm, spoil_gradient("fake_score"), {"fake_score"}),
    "discriminator": (adm, spoil_gradient("discriminator"), {"discriminator"}),
    "real images": (adm, spoil_data, {"fake_score", "discriminator"}),  # the head is on the fake score
    "tsm loss": (tsm_step, spoil_loss, {"student"}),
    "tsm data": (tsm_step, spoil_data, {"student"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_update_with_a_nan_is_left_out_and_counted(fault: str, tmp_path: Path) -> None:
    make, how, skipping = FAULTS[fault]
    whole, resumed = spoiled(make, how), spoiled(make, how)
    seen = watch(whole)
    train(whole, tmp_path / "whole", SCHEDULE)
    for name in whole.updaters:
        changed = [parts for who, parts in seen if who == name]
        still = [i for i, parts in enumerate(changed) if not parts]
        each = len(changed) // 4  # updates of this network in one of the step
        assert still == ([AT * each] if name in skipping else []), name
        state = [event["state"] for event in events(tmp_path / "whole", "progress")]
        assert [s[f"{name}_skipped_updates"] for s in state] == ([0, 0, 1, 1] if name in skipping else [0] * 4)
    assert all(t.isfinite().all() for t in tensors(whole.state_dict()).values())

    with pytest.raises(InterruptedRun):
        train(spoiled(make, how), tmp_path / "halves", Schedule(4 * BATCH, 1, 1, images_this_run=(AT + 1) * BATCH))
    train(resumed, tmp_path / "halves", SCHEDULE)
    assert equal(whole, resumed)
    assert events(tmp_path / "halves", "progress")[-1]["state"] == state[-1]


@pytest.mark.parametrize("fault", ["loss", "discriminator"])
def test_run_that_computes_no_gradients_any_more_gives_up(fault: str, tmp_path: Path) -> None:
    make, how, (skipping,) = FAULTS[fault]
    schedule = Schedule(20 * BATCH, 1, 1, give_up_after=3)
    with pytest.raises(DivergedError) as diverged:
        train(spoiled(make, how, forever=True), tmp_path, schedule)
    assert diverged.value.exit_code == 8
    assert diverged.value.why == f"no finite gradient for {skipping} in the last 3 updates"
    assert f"Look at {tmp_path / 'diverged.png'}" in diverged.value.todo
    each = 1 if skipping == "student" else 2  # updates of this network in one of the step
    last = AT + -(-3 // each)
    assert events(tmp_path, "progress")[-1]["state"][f"{skipping}_skipped_updates"] == each * (last - AT)
    assert [(e["nimg"], e["picture"]) for e in events(tmp_path, "diverged")] == [(last * BATCH, "diverged.png")]
    with Image.open(tmp_path / "diverged.png") as picture:
        assert picture.size == (3 * 64, 8 * 64 + 14)  # teacher, fake score, student; a line of titles
        images = np.asarray(picture)[14:]
    assert all(column.std() > 5 for column in np.split(images, 3, axis=1))
    state, skipped = checkpoint.load_newest(tmp_path)
    assert skipped == []
    assert state is not None
    assert state["nimg"] == (last - 1) * BATCH
    assert all(t.isfinite().all() for t in tensors(state).values())


@pytest.mark.parametrize("name", ["student", "fake_score", "discriminator"])
def test_weights_that_are_no_numbers_are_never_written(name: str, tmp_path: Path) -> None:
    """Neither as a checkpoint nor as a snapshot."""
    step = adm_step(two_time_scale_ratio=1)

    def spoil() -> None:
        with torch.no_grad():
            list(step.networks()[name].parameters())[-1].view(-1)[0] = NAN

    written: list[Path] = []
    schedule = Schedule(8 * BATCH, 1, checkpoint_every=2, snapshot_every=AT + 1)
    hooks = Hooks(export=lambda step, folder: written.append(folder))
    with pytest.raises(DivergedError, match="not finite") as diverged:
        train(Acting(step, AT, spoil), tmp_path, schedule, hooks)
    assert name in diverged.value.why
    assert written == []
    assert [path.name for path in tmp_path.glob("checkpoint-*.pt")] == [f"checkpoint-{2 * BATCH:012d}.pt"]


@pytest.mark.parametrize(("who", "masked"), [("fake_score", 1), ("teacher", 64)])
def test_entries_without_a_finite_score_are_masked_and_their_share_is_told(who: str, masked: int) -> None:
    """The teacher's prediction scales a whole image's gradient: a NaN there takes it away from all 64 pixels."""
    step = dm_step()
    x, cond = images_and_conditions(step)
    net, spoil = getattr(step, who), Spoiler()
    real = net.denoise
    net.denoise = lambda *arguments: spoil(real(*arguments))
    terms, values = step._student_terms(x, cond, draws_of(step))
    (whole,) = torch.autograd.grad(terms["dm"], x, retain_graph=True)
    assert values["dm_nonfinite_share"] == 0
    spoil.arm()
    terms, values = step._student_terms(x, cond, draws_of(step))
    (rest,) = torch.autograd.grad(terms["dm"], x)
    assert int((rest == 0).sum()) == masked
    kept = rest != 0
    assert torch.equal(rest[kept], whole[kept])
    assert float(values["dm_nonfinite_share"]) == pytest.approx(masked / x.numel())


class Scripted(Acting):
    """A real step that journals given values under a name."""

    def __init__(self, step: Step, name: str, values: list[float]) -> None:
        super().__init__(step, -1, lambda: None)
        self._name, self._values = name, values

    def __call__(self, start: int) -> dict[str, torch.Tensor]:
        values = super().__call__(start)
        assert self._name in values
        return values | {self._name: torch.tensor(self._values[start // self.batch_size])}


SCRIPTS = {
    "discriminator_loss": ("saturates", [1.4, 0.09, 0.05, 0.05, 0.2, 0.02, 0.01, NAN, 0.02]),
    "sample_spread": ("become alike", [0.4, 0.09, 0.05, 0.05, 0.2, 0.02, 0.01, NAN, 0.02]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_value_warns_once_until_it_has_come_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also over attempts."""
    meaning, values = SCRIPTS[name]
    schedule = Schedule(len(values) * BATCH, log_every=1, checkpoint_every=1)
    for stop in range(3, len(values), 2):  # in the middle of the first fall, after the return, in the second fall
        some = replace(schedule, images_this_run=(3 if stop == 3 else 2) * BATCH)
        with pytest.raises(InterruptedRun):
            train(Scripted(adm_step(two_time_scale_ratio=1), name, values), tmp_path, some)
        assert events(tmp_path, "checkpoint")[-1]["nimg"] == stop * BATCH
    train(Scripted(adm_step(two_time_scale_ratio=1), name, values), tmp_path, schedule)
    mine = [event for event in events(tmp_path, "warning") if event["message"].startswith(name)]
    assert [event["nimg"] // BATCH for event in mine] == [2, 6]
    assert all(meaning in event["message"] for event in mine)
    assert [line for line in capsys.readouterr().out.splitlines() if meaning in line] == [e["message"] for e in mine]


def test_students_images_that_become_alike_warn(tmp_path: Path) -> None:
    """With a real collapse: the student's last layer dies."""
    step = adm_step(two_time_scale_ratio=1)

    def collapse() -> None:
        with torch.no_grad():
            for p in step.student.model.out_conv.parameters():
                p.zero_()

    train(Acting(step, AT, collapse), tmp_path, SCHEDULE)
    (warning,) = events(tmp_path, "warning")
    assert "sample_spread" in warning["message"]
    assert warning["nimg"] == (AT + 1) * BATCH


def too_large_for(limit: int, from_update: int, asked: list[int | None]) -> Callable[[int | None], Any]:
    """A step whose student runs out of memory on more images than that, from some update on.

    Args:
        asked: gets the micro-batches that steps were made for.
    """

    def make(micro_batch: int | None) -> Any:
        asked.append(micro_batch)
        step = quick_step(micro_batch)
        full: list[bool] = []

        def allocate(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if full and len(arguments[0]) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation.")

        step.student.model.register_forward_pre_hook(allocate)
        if from_update == 0:
            full.append(True)
        return Acting(step, from_update, lambda: full.append(True))

    return make


def test_run_out_of_memory_goes_on_with_half_the_micro_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = load_network(run(quick_job(tmp_path / "a", UPDATES)).file("student"))
    asked: list[int | None] = []
    job, state = quick_job(tmp_path / "b", UPDATES, too_large_for(2, AT, asked)), state_of(tmp_path / "b", UPDATES)
    compute = COMPUTE.model_copy(update={"max_kimg_this_run": 2 * BATCH / 1000})
    for _ in range(2):
        with pytest.raises(InterruptedRun):
            run_job(job, compute, nothing)
    assert asked == [None, None, 2]  # the second attempt was begun anew
    record = {"before": BATCH, "after": 2, "why": "CUDA out of memory. Tried to allocate 2.00 GiB."}
    assert read_json(state / "micro-batch.json") == record
    (event,) = events(state, "micro_batch")
    assert {key: event[key] for key in record} == record
    assert capsys.readouterr().out == f"tiny dm: out of memory; from now on 2 images at once instead of {BATCH}\n"
    manifest = run(job)
    assert asked == [None, None, 2, 2]  # the third knows
    assert len(events(state, "micro_batch")) == 1
    assert [event["nimg"] // BATCH for event in events(state, "start")] == [0, AT, AT, 2 * AT]
    other = load_network(manifest.file("student"))
    for (name, one), two in zip(undisturbed.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-5), name
    first = next(undisturbed.parameters()) - next(quick_step().student.parameters())
    assert first.abs().max() > 1e-3  # far less than what was learnt


def test_run_that_half_the_micro_batch_does_not_help_ends(tmp_path: Path) -> None:
    asked: list[int | None] = []
    job, state = quick_job(tmp_path, UPDATES, too_large_for(1, AT, asked)), state_of(tmp_path, UPDATES)
    for attempts in ([None, 2], [None, 2, 2]):
        with pytest.raises(OutOfMemoryError) as ended:
            run(job)
        assert asked == attempts  # halved once and for all
        assert ended.value.exit_code == 13
        assert ended.value.why.startswith("also not for 2 images at once: CUDA out of memory")
        assert "compute.gradient_checkpointing or a smaller compute.micro_batch" in ended.value.todo
        assert str(state / "micro-batch.json") in ended.value.todo
    (state / "micro-batch.json").unlink()  # what it says to do
    run_job(job, COMPUTE.model_copy(update={"micro_batch": 1}), nothing)
    assert asked == [None, 2, 2, 1]
    assert hidden(tmp_path) == []


def test_run_that_has_no_memory_for_one_image_ends(tmp_path: Path) -> None:
    asked: list[int | None] = []
    job = quick_job(tmp_path, UPDATES, too_large_for(0, AT, asked))
    with pytest.raises(OutOfMemoryError) as ended:
        run_job(job, COMPUTE.model_copy(update={"micro_batch": 1}), nothing)
    assert asked == [1]
    assert ended.value.why.startswith("not even for one image at once: CUDA out of memory")
    assert not (state_of(tmp_path, UPDATES) / "micro-batch.json").exists()


def test_picture_that_the_memory_does_not_suffice_for_ends_no_run(tmp_path: Path) -> None:
    """It draws more images at once than a micro-batch has, and training does not need it."""
    step = quick_step()

    def allocate(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > BATCH:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    step.teacher.model.register_forward_pre_hook(allocate)
    assert train(step, tmp_path, SCHEDULE).nimg == SCHEDULE.images
    assert events(tmp_path, "finish")
    assert [event["message"] for event in events(tmp_path, "warning")] == [
        "picture.png was not drawn: CUDA out of memory."
    ]


def test_picture_that_there_is_no_room_for_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine, "save_grid", full)
    make, how, _ = FAULTS["loss"]
    with pytest.raises(DivergedError) as diverged:
        train(spoiled(make, how, forever=True), tmp_path, Schedule(20 * BATCH, 1, 1, give_up_after=3))
    assert "Look at" not in diverged.value.todo
    assert "No space left on device" in events(tmp_path, "warning")[-1]["message"]


def test_snapshots_are_the_averages_of_their_checkpoint(tmp_path: Path) -> None:
    manifest = run_job(
        quick_job(tmp_path, 5), COMPUTE.model_copy(update={"snapshot_every_updates": 2}), lambda *_: None
    )
    state = state_of(tmp_path, 5)
    names = [f"{2 * BATCH:012d}", f"{4 * BATCH:012d}"]
    assert sorted(path.name for path in (state / "snapshots").iterdir()) == names
    assert [(e["nimg"], e["folder"]) for e in events(state, "snapshot")] == [
        (int(name), f"snapshots/{name}") for name in names
    ]
    for name in names:
        assert sorted(p.name for p in (state / "snapshots" / name).iterdir()) == ["picture.png", "student.safetensors"]
        with Image.open(state / "snapshots" / name / "picture.png") as picture:
            assert picture.size == (3 * 64, 8 * 64 + 14)
    saved = torch.load(state / f"checkpoint-{names[1]}.pt", weights_only=True)["step"]
    found = copies(load_network(state / "snapshots" / names[1] / "student.safetensors"))
    averages = saved["emas"]["student"]["averages"]
    assert all(torch.equal(t, average) for t, average in zip(found.values(), averages, strict=True))
    assert not all(torch.equal(t, saved["networks"]["student"][key]) for key, t in found.items())
    assert "snapshots" not in str(manifest.body["files"])
