"""The method where the answer is known: Gaussians, whose denoisers and scores are closed forms, and small networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import ADAM, data, network
from torch import Tensor, nn

from msd import config
from msd.diffusion.grids import karras_sigmas
from msd.distill.dm import DmStep
from msd.distill.losses import dm_loss
from msd.distill.tsm import TsmStep
from msd.draws import Draws
from msd.networks import Backbone

SIGMAS = [0.1, 1.0, 20.0]
TEACHER = ((-0.5, 0.25), (0.5, 0.6))  # mean and standard deviation under each condition


class Gaussian(Backbone):
    """The exact denoiser of ``N(mean, std²)`` in every pixel, one pair for each condition; both are learnt.

    As a one-step student it is affine in the noise: ``x = a z + b`` with ``a = s²/(s² + 1)`` and ``b = (1 − a) m``.
    """

    known_sigmas = (0.0, math.inf)
    sigma_data = 0.5
    student_level = 1.0
    features_shape = (1, 1)

    def __init__(self, *moments: tuple[float, float], image_shape: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.num_conditions, self.image_shape = len(moments), image_shape
        mean, std = torch.tensor(moments).T
        self.mean, self.log_std = nn.Parameter(mean.clone()), nn.Parameter(std.log())
        self.register_buffer("noise_grid", karras_sigmas(1000, 0.002, 80.0).float().flip(0))

    def denoise(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        mean, variance, noise = (
            t.reshape(-1, 1, 1, 1) for t in (self.mean[cond], (2 * self.log_std[cond]).exp(), level.square())
        )
        return (variance * x + noise * mean) / (variance + noise)

    def score(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        """∇ log p of the noised distribution, by differentiation of its log-density."""
        std = ((2 * self.log_std[cond]).exp() + level.square()).sqrt().reshape(-1, 1, 1, 1)
        x = x.detach().requires_grad_(True)
        density = torch.distributions.Normal(self.mean[cond].reshape(-1, 1, 1, 1), std).log_prob(x).sum()
        return torch.autograd.grad(density, x)[0]

    def moments(self, cond: int) -> tuple[float, float]:
        """Mean and standard deviation of what it generates."""
        variance = math.exp(2 * self.log_std[cond].item())
        return self.mean[cond].item() / (variance + 1), variance / (variance + 1)

    def denoise_unconditional(self, x: Tensor, level: Tensor) -> Tensor:
        raise NotImplementedError

    denoise_with_features = features = condition_embeddings = denoise_unconditional  # type: ignore[assignment]


def dm_step(student: Gaussian, teacher: Gaussian, fake_score: Gaussian, part: list[int], **changes: Any) -> DmStep:
    adam = {"betas": [0.0, 0.99], "weight_decay": 0.0}
    settings = {
        "images": 100 * 256,
        "batch_size": 256,
        "student": {"learning_rate": 2e-2, **adam},
        "fake_score": {"learning_rate": 5e-2, **adam},
        "two_time_scale_ratio": 4,
        "ema_halflife_images": 20 * 256,
    } | changes
    teacher.requires_grad_(False)
    return DmStep(student, teacher, fake_score, torch.tensor(part), config.Dm.model_validate(settings), Draws(0))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_denoiser_is_the_score(sigma: float) -> None:
    """``D(x; σ) = x + σ² ∇ log p(x; σ)``: what every step below stands on, here of the test's own denoiser."""
    net, x, cond = Gaussian(*TEACHER), Draws(0).normal("x", 0, (6, 1, 1, 1)), torch.tensor([0, 1] * 3)
    level = torch.full((6,), sigma)
    expected = x + sigma**2 * net.score(x, level, cond)
    assert torch.allclose(net.denoise(x, level, cond), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_dm_gradient_is_the_difference_of_the_scores(sigma: float) -> None:
    shape = (64, 1, 16, 16)
    teacher, fake = Gaussian(*TEACHER), Gaussian((0.2, 0.4), (0.2, 0.4))
    cond, level = torch.arange(64) % 2, torch.full((64,), sigma)
    x = 0.2 + 0.4 * Draws(1).normal("x", 0, shape)
    noised = x + sigma * Draws(1).normal("noise", 0, shape)
    with torch.no_grad():
        _, g = dm_loss(x, teacher.denoise(noised, level, cond), fake.denoise(noised, level, cond))
        mean, variance = torch.tensor(TEACHER).T.reshape(2, -1, 1, 1, 1)
        variance = variance[cond].square()
        by_hand = (variance * noised + sigma**2 * mean[cond]) / (variance + sigma**2)
        scale = (x - by_hand).abs().mean(dim=(1, 2, 3), keepdim=True)
        expected = ((0.16 * noised + sigma**2 * 0.2) / (0.16 + sigma**2) - by_hand) / scale
    assert torch.allclose(g, expected, rtol=1e-3, atol=1e-4)
    scores = fake.score(noised, level, cond) - teacher.score(noised, level, cond)
    assert torch.allclose(g, sigma**2 * scores / scale, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("cond", [0, 1])
def test_dm_gradient_averages_to_that_of_the_means(sigma: float, cond: int) -> None:
    """Over images of N(m, s²) and noise: ``σ² (m − m_T) / (s_T² + σ²)`` over the mean of a folded normal."""
    shape, (m, s), (m_t, s_t) = (128, 1, 32, 32), (0.1, 0.4), TEACHER[cond]
    teacher, fake = Gaussian(TEACHER[cond]), Gaussian((m, s))
    level, conds = torch.full((shape[0],), sigma), torch.zeros(shape[0], dtype=torch.int64)
    x = m + s * Draws(2).normal("x", 0, shape)
    noised = x + sigma * Draws(2).normal("noise", 0, shape)
    with torch.no_grad():
        _, g = dm_loss(x, teacher.denoise(noised, level, conds), fake.denoise(noised, level, conds))
    a = s_t**2 / (s_t**2 + sigma**2)  # x − D_T(x_σ) = (1 − a) (x − m_T) − a σ ε
    mean, std = (1 - a) * (m - m_t), math.hypot((1 - a) * s, a * sigma)
    folded = std * math.sqrt(2 / math.pi) * math.exp(-((mean / std) ** 2) / 2) + mean * math.erf(mean / std / 2**0.5)
    assert float(g.mean()) == pytest.approx(mean / folded, rel=0.01)  # found: 0.004


def test_step_hands_the_student_this_gradient_at_its_own_levels() -> None:
    teacher, fake = Gaussian(*TEACHER, image_shape=(1, 4, 4)), Gaussian((0.0, 0.4), (0.1, 0.4), image_shape=(1, 4, 4))
    step = dm_step(Gaussian(*TEACHER, image_shape=(1, 4, 4)), teacher, fake, [0, 1], grid_range=(100, 900))
    (draws,) = step.draws.batches(0, step.batch_size)
    cond, x = step._generate(draws)
    x.retain_grad()
    step._student_terms(x, cond, draws)[0]["dm"].backward()
    noised, sigma = step._noised_for_scores(x.detach(), draws)
    grid = karras_sigmas(1000, 0.002, 80.0).float().flip(0)
    assert grid[100] <= sigma.min() < 1 < sigma.max() <= grid[900]
    difference = sigma.square().reshape(-1, 1, 1, 1) * (
        fake.score(noised, sigma, cond) - teacher.score(noised, sigma, cond)
    )
    scale = (x - teacher.denoise(noised, sigma, cond)).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert x.grad is not None
    assert torch.allclose(x.grad * x.numel(), difference / scale, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("own", [0, 1])
def test_dm_drives_a_student_to_the_teachers_distribution_of_its_part(own: int) -> None:
    """Found over three seeds: within 0.03 of mean and deviation. The other condition is another student's."""
    start = (0.0, 1.0)  # generates N(0, ½²)
    student, fake = Gaussian(start, start), Gaussian(*TEACHER)
    step = dm_step(student, Gaussian(*TEACHER), fake, [own])
    for nimg in range(0, 400 * step.batch_size, step.batch_size):
        step(nimg)
    with step.emas["student"].applied() as average:
        found = average.moments(own)
    assert found == pytest.approx(TEACHER[own], abs=0.05)
    assert fake.mean[own].item() == pytest.approx(found[0], abs=0.2)  # it follows the student
    assert student.moments(1 - own) == (0.0, 0.5)
    assert fake.mean[1 - own].item() == TEACHER[1 - own][0]


def relative_errors(step: TsmStep) -> Tensor:
    """At low, middle and high σ: distance of student and teacher, as a share of what the teacher's network adds."""
    x, cond = step.data.batch(torch.arange(40))
    errors = []
    for sigma in (0.05, 1.0, 80.0):
        level, noised = torch.full((40,), sigma), x + sigma * Draws(11).normal("noise", 0, tuple(x.shape))
        with torch.no_grad():
            target, found = (net.denoise(noised, level, cond) for net in (step.teacher, step.student))
        skip = step.teacher.coefficients(level.reshape(-1, 1, 1, 1)).skip
        errors.append((found - target).norm() / (target - skip * noised).norm())
    return torch.stack(errors)


def test_tsm_drives_a_students_score_to_the_teachers_at_all_levels() -> None:
    """Found: 0.39, 0.64 and 0.66, once 1.75, 1.62 and 1.52. A network that adds nothing has error 1."""
    adam = ADAM | {"learning_rate": 3e-3}
    settings = config.Tsm.model_validate({"images": 150 * 16, "batch_size": 16, "optimizer": adam})
    step = TsmStep(network(2), network(1), data(), settings, Draws(0))
    before = relative_errors(step)
    for nimg in range(0, settings.images, 16):
        step(nimg)
    after = relative_errors(step)
    assert (after < 0.55 * before).all(), (before, after)
    assert (after < 0.8).all(), after
