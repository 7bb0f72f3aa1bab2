"""The losses where their values and gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from msd.distill.losses import (
    denoising_loss,
    discriminator_loss,
    dm_loss,
    edm_weight,
    fake_score_loss,
    generator_adversarial_loss,
    regression_loss,
    tsm_loss,
)

SHAPE = (4, 1, 3, 3)
SIGMA = torch.tensor([0.1, 0.5, 2.0, 80.0])


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_dm_gradient_is_g_over_the_number_of_elements() -> None:
    x, teacher, fake = normal(0).requires_grad_(True), normal(1), normal(2)
    loss, g = dm_loss(x, teacher, fake)
    loss.backward()
    expected = (fake - teacher) / (x - teacher).abs().mean(dim=(1, 2, 3), keepdim=True).detach()
    assert torch.equal(g, expected)
    assert torch.allclose(x.grad, g / x.numel(), rtol=1e-5, atol=1e-9)
    assert loss.item() == pytest.approx(0.5 * float((g**2).mean()), rel=1e-5)


def test_dm_moves_a_gaussian_towards_the_teachers() -> None:
    """Data N(1, 0.5²), student N(0, 0.5²): the exact denoisers differ by what the student's mean must move."""
    x = 0.5 * normal(3, (64, 1, 4, 4))
    x.requires_grad_(True)
    noised = x.detach() + 2.0 * normal(4, (64, 1, 4, 4))
    shrink = 0.25 / (0.25 + 4.0)
    teacher, fake = 1 + shrink * (noised - 1), shrink * noised
    loss, g = dm_loss(x, teacher, fake)
    loss.backward()
    scale = (x - teacher).abs().mean(dim=(1, 2, 3), keepdim=True).detach()
    assert torch.allclose(g, (-(1 - shrink) / scale).expand_as(g), rtol=1e-4)
    assert (x.grad < 0).all()  # descent raises x, towards the data's mean


def test_no_gradient_once_student_and_teacher_agree() -> None:
    loss, g = dm_loss(normal(0), normal(1), normal(1))
    assert loss == 0
    assert not g.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite_become_zero(bad: float) -> None:
    x, teacher, fake = normal(0).requires_grad_(True), normal(1), normal(2)
    fake[1, 0, 2, 1] = bad
    loss, g = dm_loss(x, teacher, fake)
    loss.backward()
    _, clean = dm_loss(x, teacher, torch.nan_to_num(fake, nan=0.0, posinf=0.0, neginf=0.0))
    assert g[1, 0, 2, 1] == 0
    g[1, 0, 2, 1] = clean[1, 0, 2, 1]
    assert torch.equal(g, clean)  # the others are as they were
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_image_that_equals_the_teachers_gives_no_division_by_zero() -> None:
    x = normal(0)
    _, g = dm_loss(x, x.clone(), normal(1))
    assert not g.any()


def test_fake_score_weight_is_edms() -> None:
    sigma_data = 0.5
    assert torch.allclose(edm_weight(SIGMA, sigma_data), SIGMA**-2 + sigma_data**-2, rtol=1e-6)
    prediction, x = normal(0), normal(1)
    expected = ((SIGMA**-2 + sigma_data**-2).reshape(-1, 1, 1, 1) * (prediction - x) ** 2).mean()
    assert torch.allclose(fake_score_loss(prediction, x, SIGMA, sigma_data), expected, rtol=1e-6)
    assert torch.equal(
        denoising_loss(prediction, x, SIGMA, sigma_data), fake_score_loss(prediction, x, SIGMA, sigma_data)
    )


@pytest.mark.parametrize("loss", [fake_score_loss, tsm_loss])
def test_targets_get_no_gradient(loss: Callable[..., Tensor]) -> None:
    prediction, target = normal(0).requires_grad_(True), normal(1).requires_grad_(True)
    loss(prediction, target, SIGMA, 0.5).backward()
    assert prediction.grad.any()
    assert target.grad is None


def test_adversarial_losses_do_not_saturate() -> None:
    """A student that fools nobody is pushed hardest; the discriminator pushes real up and fake down."""
    sure_fake, sure_real = torch.tensor([-20.0], requires_grad=True), torch.tensor([20.0], requires_grad=True)
    generator_adversarial_loss(sure_fake).backward()
    generator_adversarial_loss(sure_real).backward()
    assert sure_fake.grad.item() == pytest.approx(-1, abs=1e-6)
    assert sure_real.grad.item() == pytest.approx(0, abs=1e-6)
    real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    loss = discriminator_loss(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.693147, rel=1e-5)
    assert real.grad.tolist() == pytest.approx([-0.25, -0.25])
    assert fake.grad.tolist() == pytest.approx([0.25, 0.25])


def test_regression_metrics() -> None:
    x, y = torch.tensor([[[[0.5, 3.0]]]]).requires_grad_(True), torch.zeros(1, 1, 1, 2).requires_grad_(True)
    assert regression_loss(x, y, "l2").item() == pytest.approx((0.25 + 9) / 2)
    huber = regression_loss(x, y, "huber")
    assert huber.item() == pytest.approx((0.125 + 2.5) / 2)
    huber.backward()
    assert y.grad is None


def test_half_precision_networks_get_float32_losses() -> None:
    x, teacher, fake = (normal(i).bfloat16() for i in range(3))
    loss, g = dm_loss(x, teacher, fake)
    assert loss.dtype == g.dtype == torch.float32
    assert fake_score_loss(x, teacher, SIGMA, 0.5).dtype == torch.float32
    assert generator_adversarial_loss(x[:, 0, 0, 0]).dtype == torch.float32
    assert regression_loss(x, teacher, "l2").dtype == torch.float32


@pytest.mark.parametrize(
    "call",
    [
        lambda: dm_loss(normal(0), normal(1)[:2], normal(2)),
        lambda: dm_loss(normal(0), normal(1), normal(2, (4, 3, 3, 3))),
        lambda: fake_score_loss(normal(0), normal(1), SIGMA[:2], 0.5),
        lambda: fake_score_loss(normal(0), normal(1), torch.tensor(0.5), 0.5),
        lambda: tsm_loss(normal(0), normal(1)[:, :, :1], SIGMA, 0.5),
        lambda: regression_loss(normal(0), normal(1)[:1], "l2"),
        lambda: generator_adversarial_loss(normal(0, (4, 1))),
        lambda: discriminator_loss(normal(0, (4,)), normal(0, (4, 1))),
    ],
)
def test_wrong_shapes_are_refused_not_broadcast(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="shape"):
        call()
