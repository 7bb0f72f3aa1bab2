"""Who learns: each update moves its own networks only, and the state holds all that moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import BATCH, adm_step, copies, dm_step, draws_of, images_and_conditions, moved, tensors, tsm_step
from tiny_latent import latent_adm_step, latent_dm_step, latent_tsm_step

from msd.distill import dm
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep, Generated
from msd.distill.tsm import TsmStep

RATIO = 3
Make = Callable[..., DmStep]
ADVERSARIAL = {"adm": adm_step, "latent adm": latent_adm_step}
BOTH = {"dm": dm_step, "latent dm": latent_dm_step, **ADVERSARIAL}
ALL = {**BOTH, "tsm": tsm_step, "latent tsm": latent_tsm_step}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)  # of pixels and classes, of latents and texts
adversarial = pytest.mark.parametrize("make", ADVERSARIAL.values(), ids=ADVERSARIAL)


def networks(step: DmStep) -> dict[str, torch.nn.Module]:
    """Every network that a step holds, by role."""
    return {"teacher": step.teacher, **step.networks()}


def moved_by(step: DmStep, update: Callable[[], Any]) -> dict[str, set[str]]:
    """Role → names of the parameters that ``update`` moves."""
    before = {role: copies(net) for role, net in networks(step).items()}
    update()
    return {role: names for role, net in networks(step).items() if (names := moved(net, before[role]))}


@both
def test_student_update_moves_the_student_only(make: Make) -> None:
    step = make()
    found = moved_by(step, lambda: step._update_student([draws_of(step)]))
    assert found.keys() == {"student"}
    assert all(not p.requires_grad or p.grad is None for p in step.fake_score.parameters())


@both
def test_critic_update_moves_the_critics_only(make: Make) -> None:
    step = make()
    x, cond = images_and_conditions(step)
    found = moved_by(step, lambda: step._update_critics([Generated(draws_of(step), cond, x.detach())]))
    assert found.keys() == networks(step).keys() - {"student", "teacher"}


@pytest.mark.parametrize("make", [partial(dm_step, part=(0, 1, 2, 3)), latent_dm_step], ids=["dm", "latent dm"])
def test_every_weight_of_the_student_learns(make: Make) -> None:
    step = make()
    found = moved_by(step, lambda: step._update_student([draws_of(step)]))
    assert found["student"] == set(dict(step.student.named_parameters()))


def test_discriminator_gradient_reaches_the_fake_scores_encoder_only() -> None:
    step = adm_step(discriminator_weight=1e3)
    x, cond = images_and_conditions(step)
    logits = step._logits(x.detach(), cond, "critic", draws_of(step))
    logits.sum().backward()
    reached = {name for name, p in step.fake_score.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("model.enc.") for name in reached)
    assert not any(name.startswith("model.dec.") for name in reached)


@adversarial
def test_adversarial_term_reaches_the_student(make: Callable[..., AdmStep]) -> None:
    step = make()
    x, cond = images_and_conditions(step)
    with dm.frozen(step.fake_score, step.discriminator):
        terms, _ = step._student_terms(x, cond, draws_of(step))
        terms["adversarial"].backward()
    assert any(p.grad is not None and p.grad.any() for p in step.student.parameters())
    others = (step.discriminator, step.fake_score, step.teacher)
    assert not any(p.grad is not None for net in others for p in net.parameters())


@both
def test_gradient_flags_are_as_before(make: Make) -> None:
    step = make()
    step(0)
    flags = {role: {p.requires_grad for p in net.parameters()} for role, net in networks(step).items()}
    assert flags.pop("teacher") == {False}
    assert all(flag == {True} for flag in flags.values())


def test_frozen_gives_the_flags_back_after_an_error() -> None:
    net = torch.nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), dm.frozen(net):
        _ = 1 / int(net.weight.requires_grad)
    assert net.weight.requires_grad


@both
def test_teacher_never_moves_and_all_others_do(make: Make) -> None:
    step = make()
    found = moved_by(step, lambda: step(0))
    assert found.keys() == networks(step).keys() - {"teacher"}


@both
@pytest.mark.parametrize("ratio", [1, RATIO])
def test_two_time_scales(make: Make, ratio: int) -> None:
    step = make(two_time_scale_ratio=ratio)
    for start in (0, BATCH):
        step(start)
    assert step.updaters["student"].updates == 2
    assert [u.updates for name, u in step.updaters.items() if name != "student"] == [2 * ratio] * (
        len(networks(step)) - 2
    )


def test_regression_pulls_towards_the_pairs() -> None:
    plain, pulled = dm_step(), dm_step(regression=True)
    x, cond = images_and_conditions(pulled)
    terms, values = pulled._student_terms(x, cond, draws_of(pulled))
    assert terms.keys() == {"dm", "regression"}
    assert terms["regression"] == 0.5 * values["regression_loss"]
    with torch.no_grad():
        first = float(pulled._regression(draws_of(pulled))[0])
    assert plain._student_terms(x, cond, draws_of(plain))[0].keys() == {"dm"}
    for start in range(0, 30 * BATCH, BATCH):
        pulled(start)
    with torch.no_grad():
        assert float(pulled._regression(draws_of(pulled))[0]) < first


def test_average_starts_where_it_is_told() -> None:
    for step, elsewhere in ((adm_step(), True), (dm_step(), False)):
        before = copies(step.student)
        with step.emas["student"].applied() as average:
            assert bool(moved(average, before)) == elsewhere
        assert not moved(step.student, before)


@both
def test_journal_values_are_the_agreed_ones(make: Make) -> None:
    step = make()
    values = step(0)
    common = {"dm_loss", "fake_score_loss", "dm_gradient_mean_abs", "dm_nonfinite_share", "sample_spread"}
    further = {"generator_adversarial_loss", "discriminator_loss", "logits_real", "logits_fake"}
    assert values.keys() == common | (further if isinstance(step, AdmStep) else set())
    assert all(v.ndim == 0 and torch.isfinite(v) for v in values.values())


@pytest.mark.parametrize("make", [tsm_step, latent_tsm_step], ids=["tsm", "latent tsm"])
def test_tsm_moves_the_student_towards_the_teacher(make: Callable[..., TsmStep]) -> None:
    step = make()
    before = copies(step.teacher)
    losses = [float(step(start)["loss"]) for start in range(0, 60 * BATCH, BATCH)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not moved(step.teacher, before)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_state_holds_everything_that_a_step_moves(make: Callable[..., Any]) -> None:
    step, other = make(), make()
    step(0)
    other.load_state_dict(copy.deepcopy(step.state_dict()))  # as from a file
    after, restored = (tensors(s.state_dict()) for s in (step, other))
    assert after.keys() == restored.keys()
    assert all(torch.equal(t, restored[name]) for name, t in after.items())
    step(BATCH)
    other(BATCH)
    after, restored = (tensors(s.state_dict()) for s in (step, other))
    assert all(torch.equal(t, restored[name]) for name, t in after.items())
