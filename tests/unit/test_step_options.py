"""Options of the stages: what each changes, and that none of them changes anything when it is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import adm_step, dm_step, draws_of, images_and_conditions, tensors

from msd.distill.dm import DmStep
from msd.distill.losses import divergence_weights, dm_loss, r1_penalty
from msd.draws import Draws

RATIO = 3


def calls(step: DmStep, role: str, update: Any) -> int:
    """How many forward passes of a network an update takes."""
    counted: list[int] = []
    hook = getattr(step, role).model.register_forward_hook(lambda *_: counted.append(1))
    update()
    hook.remove()
    return len(counted)


@pytest.mark.parametrize("make", [dm_step, adm_step], ids=["dm", "adm"])
@pytest.mark.parametrize(("strict", "expected"), [(False, RATIO), (True, RATIO - 1)])
def test_strict_alternation_leaves_out_the_students_own_iteration(make: Any, strict: bool, expected: int) -> None:
    step = make(two_time_scale_ratio=RATIO, strict_alternation=strict)
    values = step(0)
    assert step.updaters["fake_score"].updates == expected
    assert step.updaters["student"].updates == 1
    assert {"dm_loss", "fake_score_loss"} <= values.keys()


def test_strict_alternation_needs_two_iterations() -> None:
    with pytest.raises(ValidationError, match="never learn"):
        dm_step(two_time_scale_ratio=1, strict_alternation=True)


@pytest.mark.parametrize("make", [dm_step, adm_step], ids=["dm", "adm"])
def test_guidance_of_scale_one_is_none(make: Any) -> None:
    plain, guided = make(), make(teacher_guidance=1.0)
    plain(0), guided(0)
    expected = tensors(plain.state_dict())
    assert all(torch.equal(t, expected[name]) for name, t in tensors(guided.state_dict()).items())
    assert calls(make(), "teacher", lambda: None) == 0
    step = make()
    x, cond = images_and_conditions(step)
    assert calls(step, "teacher", lambda: step._student_terms(x, cond, draws_of(step))) == 1


@pytest.mark.parametrize("make", [dm_step, adm_step], ids=["dm", "adm"])
def test_guidance_extrapolates_from_the_unconditional_prediction(make: Any) -> None:
    step = make(teacher_guidance=1.75)
    x, cond = images_and_conditions(step)
    noised, sigma = step._noised_for_scores(x.detach(), draws_of(step))
    with_cond = step.teacher.denoise(noised, sigma, cond)
    without = step.teacher(noised, sigma)
    assert not torch.allclose(with_cond, without)
    assert torch.allclose(step._guided(with_cond, noised, sigma), with_cond + 0.75 * (with_cond - without), atol=1e-6)
    assert calls(step, "teacher", lambda: step._student_terms(x, cond, draws_of(step))) == 2


def test_head_on_the_teacher_leaves_the_fake_score_alone() -> None:
    step = adm_step(discriminator_features="teacher")
    x, cond = images_and_conditions(step)
    terms, _ = step._critic_terms(x.detach(), cond, draws_of(step))
    terms["discriminator"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in step.fake_score.parameters())
    assert all(p.grad is not None and p.grad.any() for p in step.discriminator.parameters())
    assert not any(p.grad is not None for p in step.teacher.parameters())


def test_head_on_the_teacher_shares_one_pass_with_the_score_and_reaches_the_student() -> None:
    step = adm_step(discriminator_features="teacher")
    x, cond = images_and_conditions(step)
    held: dict[str, torch.Tensor] = {}

    def student_terms() -> None:
        held.update(step._student_terms(x, cond, draws_of(step))[0])

    assert calls(step, "teacher", student_terms) == 1
    held["adversarial"].backward()
    assert any(p.grad is not None and p.grad.any() for p in step.student.parameters())


def test_head_on_the_teacher_does_not_change_the_dm_gradient() -> None:
    gradients = []
    for features in ("fake_score", "teacher"):
        step = adm_step(discriminator_features=features)
        x, cond = images_and_conditions(step)
        x.retain_grad()
        step._student_terms(x, cond, draws_of(step))[0]["dm"].backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-9)


def test_weights_of_the_divergences() -> None:
    logits = torch.tensor([-2.0, 0.0, 0.5, 3.0], requires_grad=True)
    r = logits.detach().exp()
    expected = {"reverse_kl": torch.ones(4), "jensen_shannon": r / (1 + r), "forward_kl": r}
    for divergence, h in expected.items():
        found = divergence_weights(logits, divergence)  # type: ignore[arg-type]
        assert not found.requires_grad
        assert torch.allclose(found, h, rtol=1e-5)
    assert divergence_weights(torch.tensor([1e4, -1e4]), "forward_kl").isfinite().all()


def test_weights_scale_the_gradient_of_each_image() -> None:
    make = Draws(3)
    x, teacher, fake = (make.normal(name, 0, (3, 1, 4, 4)) for name in ("x", "teacher", "fake"))
    weights = torch.tensor([0.0, 1.0, 2.5])
    _, plain = dm_loss(x, teacher, fake)
    _, weighted = dm_loss(x, teacher, fake, weights)
    assert torch.allclose(weighted, weights.reshape(-1, 1, 1, 1) * plain)
    with pytest.raises(ValueError, match="expected shape"):
        dm_loss(x, teacher, fake, torch.ones(2))


@pytest.mark.parametrize("divergence", ["jensen_shannon", "forward_kl"])
def test_divergence_changes_the_dm_term_only(divergence: str) -> None:
    plain, other = adm_step(), adm_step(divergence=divergence)
    terms = [step._student_terms(*images_and_conditions(step), draws_of(step))[0] for step in (plain, other)]
    assert terms[0]["dm"] != terms[1]["dm"]
    assert terms[0]["adversarial"] == terms[1]["adversarial"]


def test_r1_penalty_is_the_squared_slope() -> None:
    slope, sigma = torch.arange(8.0), 0.01
    x, noise = (Draws(1).normal(name, 0, (4000, 8)) for name in ("x", "noise"))
    nearby = x + sigma * noise
    found = r1_penalty(x @ slope, nearby @ slope)
    assert float(found) == pytest.approx(sigma**2 * float(slope @ slope), rel=0.1)


def test_r1_penalty_flattens_the_discriminator_only_where_asked() -> None:
    assert "r1_penalty" not in adm_step()(0)
    step = adm_step(r1_weight=100.0)
    values = step(0)
    assert values["r1_penalty"] > 0
    x, cond = images_and_conditions(step)
    terms, _ = step._critic_terms(x.detach(), cond, draws_of(step))
    terms["r1"].backward()
    assert any(p.grad is not None and p.grad.any() for p in step.discriminator.parameters())
