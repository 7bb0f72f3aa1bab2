"""Which parameters hold a gradient when an optimiser uses it: those of its own networks, all of them, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import ADAM, adm_step, dm_step, draws_of, images_and_conditions, network, tsm_step

from msd import config
from msd.distill.dm import DmStep, Generated
from msd.training.step import Step, Updater, learn

Graded = dict[str, set[str]]
HEADS = ("fake_score", "teacher")


def networks(step: Any) -> dict[str, torch.nn.Module]:
    """Every network that a step holds, by role."""
    return {"teacher": step.teacher, **step.networks()}


def graded(nets: dict[str, torch.nn.Module]) -> Graded:
    """Role → names of the parameters that hold a gradient now, for the roles that have any."""
    found = {role: {name for name, p in net.named_parameters() if p.grad is not None} for role, net in nets.items()}
    return {role: names for role, names in found.items() if names}


def all_of(step: Step, *roles: str) -> Graded:
    """What ``graded`` finds where these networks have gradients everywhere, and no others any."""
    return {role: {name for name, _ in step.networks()[role].named_parameters()} for role in roles}


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], list[tuple[str, Graded]]]:
    """Step → (who applies, who holds gradients right before it), for every application of an optimiser from here on."""

    def watch(step: Step) -> list[tuple[str, Graded]]:
        seen: list[tuple[str, Graded]] = []
        names = {id(updater): name for name, updater in step.updaters.items()}
        real = Updater.apply

        def apply(self: Updater) -> None:
            seen.append((names[id(self)], graded(networks(step))))
            real(self)

        monkeypatch.setattr(Updater, "apply", apply)
        return seen

    return watch


def update_critics(step: DmStep) -> None:
    """The critics' update on a batch of the student's."""
    x, cond = images_and_conditions(step)
    step._update_critics([Generated(draws_of(step), cond, x.detach())])


def test_tsm(applied: Any) -> None:
    step = tsm_step()
    seen = applied(step)
    step(0)
    assert seen == [("student", all_of(step, "student"))]


@pytest.mark.parametrize("regression", [False, True])
def test_dm_student(regression: bool, applied: Any) -> None:
    step = dm_step(part=(0, 1, 2, 3), regression=regression)
    seen = applied(step)
    step._update_student([draws_of(step)])
    assert seen == [("student", all_of(step, "student"))]


def test_dm_critic(applied: Any) -> None:
    step = dm_step()
    seen = applied(step)
    update_critics(step)
    assert seen == [("fake_score", all_of(step, "fake_score"))]


@pytest.mark.parametrize("features", HEADS)
@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_adm_student(features: str, divergence: str, applied: Any) -> None:
    step = adm_step(discriminator_features=features, divergence=divergence)
    seen = applied(step)
    step._update_student([draws_of(step)])
    assert seen == [("student", all_of(step, "student"))]


@pytest.mark.parametrize("features", HEADS)
@pytest.mark.parametrize("r1_weight", [0.0, 1.0])
def test_adm_critics(features: str, r1_weight: float, applied: Any) -> None:
    """Both critics' gradients are there before the first of them moves."""
    step = adm_step(discriminator_features=features, r1_weight=r1_weight)
    seen = applied(step)
    update_critics(step)
    both = all_of(step, "fake_score", "discriminator")
    assert seen == [("fake_score", both), ("discriminator", both)]


@pytest.mark.parametrize("features", HEADS)
def test_who_applies_in_a_whole_iteration_and_in_what_order(features: str, applied: Any) -> None:
    """Nothing of one update's gradients is left for the next one's optimiser."""
    step = adm_step(discriminator_features=features)
    seen = applied(step)
    step(0)
    step(step.batch_size)
    critics = [(name, all_of(step, "fake_score", "discriminator")) for name in ("fake_score", "discriminator")]
    assert seen == 2 * [("student", all_of(step, "student")), *(3 * critics)]


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    """The sum is there before an optimiser sees it: the same gradient, and one application for all parts."""
    gradients = []
    for micro_batch in (None, 1):
        step = adm_step()
        step.draws.micro_batch = micro_batch
        step._update_student(step.draws.batches(0, step.batch_size))
        assert step.updaters["student"].updates == 1
        gradients.append(torch.cat([p.grad.flatten() for p in step.student.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6 * float(gradients[0].abs().max()))


def test_gradient_in_a_network_that_must_not_learn_stops_the_update() -> None:
    mover, still = network(1).requires_grad_(True), network(2)
    updater = Updater(mover, config.Optimizer.model_validate(ADAM))
    x, cond = torch.ones(2, *mover.image_shape), torch.tensor([0, 1])

    def losses() -> Iterator[torch.Tensor]:
        yield (mover.generate(x, cond) - still.generate(x, cond)).square().mean()

    learn(losses(), [updater], [still])
    assert updater.updates == 1
    still.requires_grad_(True)
    before = [p.detach().clone() for p in mover.parameters()]
    with pytest.raises(AssertionError, match="EDMPrecond must not learn in this update"):
        learn(losses(), [updater], [still])
    assert updater.updates == 1
    assert all(torch.equal(p, b) for p, b in zip(mover.parameters(), before, strict=True))


def test_stale_gradient_is_no_gradient_of_this_update() -> None:
    mover, still = network(1).requires_grad_(True), network(2).requires_grad_(True)
    for p in (*mover.parameters(), *still.parameters()):
        p.grad = torch.full_like(p, float("nan"))
    updater = Updater(mover, config.Optimizer.model_validate(ADAM))
    loss = mover.generate(torch.ones(1, *mover.image_shape), torch.tensor([0])).mean()
    learn([loss], [updater], [still])
    assert updater.norm.isfinite()
    assert graded({"still": still}) == {}
