"""Preconditionings and views of one denoiser: identities that hold whatever the weights are."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import CLASSES, IMAGE_SHAPE, network

from msd.config import Network
from msd.diffusion import heun, heun_sample
from msd.diffusion.grids import iddpm_sigmas, vp_sigma, vp_time
from msd.diffusion.views import epsilon_of, score_of, x0_of_epsilon, x0_of_score
from msd.draws import Draws
from msd.errors import ConfigError
from msd.networks import sample_teacher
from msd.networks.files import build_network
from msd.networks.precond import PRECONDITIONINGS

KINDS = list(PRECONDITIONINGS)


def latents(count: int = 3) -> torch.Tensor:
    return torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_mix_image_and_network(kind: str) -> None:
    net = network(1, preconditioning=kind)
    sigma = torch.tensor([0.1, 1.0, 20.0]).reshape(-1, 1, 1, 1)
    c = net.coefficients(sigma)
    if kind == "edm":  # variance of the network's input and target is one (arXiv 2206.00364, eq. 7 and 8)
        assert torch.allclose(torch.as_tensor(c.input) ** 2 * (sigma**2 + 0.25), torch.ones_like(sigma))
        assert torch.allclose(c.out**2, (1 - c.skip) ** 2 * 0.25 + c.skip**2 * sigma**2)
    else:  # the network predicts noise: x0 = x ∓ σ F
        assert c.skip == 1
        assert torch.equal(c.out.abs(), sigma)


@pytest.mark.parametrize("kind", KINDS)
def test_bottleneck_and_image_of_one_pass_are_those_of_two(kind: str) -> None:
    net, cond, level = network(2, preconditioning=kind, architecture="song"), torch.arange(3), torch.tensor(1.0)
    x0, features = net.denoise_with_features(latents(), level, cond)
    assert x0.shape == (3, *IMAGE_SHAPE)
    assert torch.equal(x0, net.denoise(latents(), level, cond))
    assert torch.equal(features, net.features(latents(), level, cond))
    assert features.shape[1:] == (*net.features_shape, net.features_shape[1])


def test_vp_time_is_the_inverse_of_its_sigma() -> None:
    for t in (1e-5, 0.01, 0.5, 1.0):
        assert float(vp_time(torch.tensor(vp_sigma(t), dtype=torch.float64))) == pytest.approx(t, rel=1e-6)
    assert vp_sigma(1.0) == pytest.approx(math.sqrt(math.exp(0.5 * 19.9 + 0.1) - 1))


def test_iddpm_knows_its_thousand_levels_only() -> None:
    levels = iddpm_sigmas()
    assert len(levels) == 1001
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    net = network(3, preconditioning="iddpm")
    asked = torch.tensor([0.05, 1.0, 70.0], dtype=torch.float64)
    rounded = net.round_sigma(asked)
    assert rounded.dtype == asked.dtype
    assert torch.isin(rounded.float(), levels).all()
    assert ((rounded - asked).abs() / asked < 0.02).all()


def test_views_of_one_denoiser() -> None:
    x, x0, sigma = latents(), latents().flip(0), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    x, x0 = x.double(), x0.double()
    epsilon, score = epsilon_of(x, x0, sigma), score_of(x, x0, sigma)
    assert torch.allclose(x0 + sigma * epsilon, x)
    assert torch.allclose(score, -epsilon / sigma)
    assert torch.allclose(x0_of_epsilon(x, epsilon, sigma), x0)
    assert torch.allclose(x0_of_score(x, score, sigma), x0)


def test_heun_sample_keeps_to_the_networks_range_and_levels() -> None:
    for kind in KINDS:
        net = network(4, preconditioning=kind)
        asked: list[torch.Tensor] = []
        net.register_forward_pre_hook(lambda _, inputs, asked=asked: asked.append(inputs[1].double()))
        images = heun_sample(net, latents(), torch.arange(3), num_steps=5)
        assert images.shape == (3, *IMAGE_SHAPE)
        assert images.dtype == torch.float32
        levels = torch.stack(asked)
        assert len(levels) == 9
        assert float(levels.min()) >= min(net.sigma_min, 0.002) * 0.999
        assert float(levels.max()) == pytest.approx(min(net.sigma_max, 80.0), rel=0.01)
        assert torch.equal(net.round_sigma(levels), levels)


def test_heun_sample_is_heun_on_the_network() -> None:
    net, cond = network(5), torch.tensor([0, 1, 2])
    one_hot = torch.nn.functional.one_hot(cond, CLASSES).float()
    expected = heun(lambda x, sigma: net.denoise(x, sigma, cond), latents(), num_steps=6)
    assert torch.equal(heun_sample(net, latents(), cond, num_steps=6), expected)
    assert torch.equal(heun_sample(net, latents(), one_hot, num_steps=6), expected)
    noise = lambda step, like: torch.full_like(like, step / 10)  # noqa: E731
    churned = heun_sample(net, latents(), cond, num_steps=6, S_churn=4.0, noise=noise)
    assert not torch.allclose(churned, expected)
    assert heun_sample(net, latents(), cond, S_churn=4.0).shape == churned.shape


def test_stochastic_sampler_keeps_the_distribution() -> None:
    """For Gaussian data the exact denoiser is known: with noise put in on the way, the spread must come out right."""

    class Gaussian:
        known_sigmas = (0.0, math.inf)

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
            return 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3)

        def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
            return sigma

    draws = Draws(0)
    start = draws.normal("latents", 0, (20_000, 1, 1, 1))
    noise = lambda step, like: draws.normal(f"step {step}", 0, tuple(like.shape)).double()  # noqa: E731
    for churn in (0.0, 40.0):
        x = heun_sample(Gaussian(), start, num_steps=256, S_churn=churn, S_noise=1.0, noise=noise)
        assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
        assert float(x.std()) == pytest.approx(0.5, rel=0.02)


def test_conventions_of_edm_are_understood() -> None:
    net, cond, sigma = network(6), torch.tensor([0, 1, 2]), torch.tensor([0.5, 1.0, 2.0])
    expected = net(latents(), sigma, cond)
    assert torch.equal(net(latents(), sigma.reshape(-1, 1, 1, 1), cond), expected)
    one_hot = torch.nn.functional.one_hot(cond, CLASSES)
    assert torch.equal(net(latents(), sigma, one_hot), expected)
    assert torch.allclose(net(latents()[:1], sigma[:1], one_hot[0].float()), expected[:1], atol=1e-5)


def test_guidance_needs_dropped_labels() -> None:
    cond, sampler = torch.arange(3), {"num_steps": 2, "guidance": 3.0}
    with pytest.raises(ConfigError, match="cannot be sampled with guidance"):
        sample_teacher(network(1), latents(), cond, sampler)
    net = network(1, label_dropout=0.1)

    def by_hand(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        without = net(x, sigma)  # a label of zeros
        return without + 3 * (net(x, sigma, cond) - without)

    assert torch.equal(sample_teacher(net, latents(), cond, sampler), heun(by_hand, latents(), num_steps=2))


def test_unconditional_network_has_one_class() -> None:
    net = build_network(
        Network.model_validate({"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}),
        image_shape=IMAGE_SHAPE,
        num_conditions=0,
        seed=0,
    )
    assert (net.num_conditions, net.num_classes) == (0, 1)
    cond = torch.zeros(3, dtype=torch.int64)
    assert net.generate(latents(), cond).shape == latents().shape
    sampled = sample_teacher(net, latents(), cond, {"num_steps": 2})
    assert torch.equal(sampled, heun_sample(net, latents(), None, num_steps=2))
