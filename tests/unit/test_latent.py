"""The denoiser of latents: x0 and ε agree, our two halves are diffusers' forward, and its files come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BATCH, images_and_conditions
from tiny_latent import (
    LATENT_SHAPE,
    TEXT_LENGTH,
    WIDTH,
    latent,
    latent_adm_step,
    latent_dm_step,
    text_network,
    texts,
)
from torch import Tensor

from msd.config import TeacherSampler
from msd.diffusion import heun, heun_sample
from msd.draws import Draws
from msd.errors import ConfigError
from msd.networks import load_network, sample_teacher, save_network
from msd.networks.discriminator import Discriminator
from msd.networks.latent import UNSUPPORTED, LatentDenoiser, build_latent

X = Draws(0).normal("x", 0, (BATCH, *LATENT_SHAPE))
DEEP: dict[str, Any] = {  # text in several blocks, two layers in each
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
LINEAR = {"use_linear_projection": True, "attention_head_dim": [2, 4]}  # as Stable Diffusion 2 has it
LEVELS = [0, 1, 20, 499, 980, 999]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def at(net: LatentDenoiser, t: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents x_σ (B, C, h, w), their levels and their timesteps (B,)."""
    steps = torch.tensor(t)
    sigma = net.noise_grid[steps]
    noise = Draws(1).normal("noise", 0, (len(t), *net.image_shape))
    clean = Draws(2).normal("clean", 0, (len(t), *net.image_shape))
    return clean + sigma.reshape(-1, 1, 1, 1) * noise, sigma, steps


# --- x0 and ε ---


def test_levels_are_those_of_ddpm() -> None:
    net = latent()
    sigma, alphas = net.noise_grid.double(), net.alphas
    assert relative(sigma.square(), (1 - alphas) / alphas) < 1e-6
    assert bool((sigma.diff() > 0).all())
    assert net.known_sigmas == (float(net.noise_grid[0]), float(net.noise_grid[-1]))
    assert net.timestep(net.noise_grid).tolist() == list(range(1000))
    between = (net.noise_grid[:-1] + 0.3 * net.noise_grid.diff())[None]
    assert net.timestep(between).tolist() == [list(range(999))]  # the nearest, of the same shape
    assert torch.equal(net.round_sigma(between[0]), net.noise_grid[:-1])


@torch.no_grad()
def test_x0_and_epsilon_agree_at_every_level() -> None:
    """x_σ = x0 + σ ε̂ and x_t = √ᾱ x0 + √(1−ᾱ) ε̂, with diffusers' own ε̂ of x_t."""
    net = latent(1)
    x, sigma, t = at(net, list(range(1000)))
    text = texts(1).expand(1000, -1, -1)
    x0 = net.denoise(x, sigma, text)
    alpha = net.alphas[t].reshape(-1, 1, 1, 1)
    x_t = (alpha.sqrt() * x).float()
    epsilon = net.model.unet(x_t, t, encoder_hidden_states=text).sample
    for rebuilt, given in (
        (x0 + sigma.reshape(-1, 1, 1, 1) * epsilon, x),
        (alpha.sqrt() * x0 + (1 - alpha).sqrt() * epsilon, x_t),
    ):
        distance = (rebuilt - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)
        assert float(distance.max()) < 1e-6


@torch.no_grad()
def test_one_level_serves_a_whole_batch() -> None:
    net, text = latent(1), texts(BATCH)
    one = net.denoise(X, net.noise_grid[300], text)
    assert torch.equal(one, net.denoise(X, net.noise_grid[300].expand(BATCH), text))
    assert torch.equal(one, net(X, float(net.noise_grid[300]), text))


@torch.no_grad()
def test_generation_is_the_last_step_from_the_noise_itself() -> None:
    net, text = latent(1), texts(BATCH)
    alpha = net.alphas[-1]
    epsilon = net.model.unet(X, 999, encoder_hidden_states=text).sample
    assert relative(net.generate(X, text), (X - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()) < 1e-6
    # in the seam's words it starts from √(1 + σ²) times the noise, at the student's level
    level = torch.tensor(net.student_level)
    assert relative(net.generate(X, text), net.denoise(X * (1 + level**2).sqrt(), level, text)) < 1e-5


# --- guidance ---


def test_guidance_of_scale_one_does_not_look_at_the_empty_prompt() -> None:
    plain, blind = latent_dm_step(), latent_dm_step(teacher_guidance=1.0)
    blind.teacher.empty.fill_(torch.nan)
    found = [step(0) for step in (plain, blind)]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    for role, net in plain.networks().items():
        other = dict(blind.networks()[role].named_parameters())
        assert all(torch.equal(p, other[name]) for name, p in net.named_parameters())


def test_guidance_goes_away_from_the_empty_prompt() -> None:
    step = latent_dm_step(teacher_guidance=3.0)
    net, text = step.teacher, texts(BATCH)
    x, sigma, _ = at(net, [20, 300, 700, 980])
    conditional, empty = net.denoise(x, sigma, text), net.denoise(x, sigma, net.empty.expand(BATCH, -1, -1))
    assert torch.equal(net.denoise_unconditional(x, sigma), empty)
    assert torch.equal(net(x, sigma), empty)
    assert not torch.allclose(conditional, empty, rtol=1e-3)
    assert relative(step._guided(conditional, x, sigma), 3 * conditional - 2 * empty) < 1e-6
    assert step(0)["dm_loss"] != latent_dm_step()(0)["dm_loss"]


def test_sampling_with_guidance_one_is_sampling_without() -> None:
    net, blind, noise, text = latent(1), latent(1), X, texts(BATCH)
    blind.empty.fill_(torch.nan)
    plain = heun_sample(net, noise, text, num_steps=3)
    assert torch.equal(sample_teacher(blind, noise, text, {"num_steps": 3, "guidance": 1.0}), plain)
    assert torch.equal(sample_teacher(blind, noise, text, {"num_steps": 3}), plain)


def test_guided_sampling_guides_every_evaluation() -> None:
    net, text, scale, levels = latent(1), texts(BATCH), 2.5, []

    def by_hand(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(sigma)
        with_prompt, without = net(x, sigma, text), net(x, sigma, net.empty.expand(BATCH, -1, -1))
        return without + scale * (with_prompt - without)

    low, high = net.known_sigmas
    settings = {"num_steps": 3, "sigma_min": low, "sigma_max": high}
    expected = heun(by_hand, X, round_sigma=net.round_sigma, **settings)
    found = sample_teacher(net, X, text, settings | {"guidance": scale})
    assert torch.equal(found, expected)
    assert TeacherSampler(num_steps=3, guidance=scale).nfe == 2 * len(levels)
    assert relative(found, sample_teacher(net, X, text, settings)) > 1e-3


# --- our halves and diffusers' whole ---

shapes = pytest.mark.parametrize(
    ("side", "changes"),
    [(8, {}), (8, DEEP), (7, {}), (7, DEEP), (8, LINEAR)],
    ids=["two levels", "three levels", "odd", "three levels, odd", "linear projections"],
)


@shapes
@torch.no_grad()
def test_forward_is_that_of_diffusers(side: int, changes: dict[str, Any]) -> None:
    net = latent(1, side=side, **changes)
    x, _, t = at(net, LEVELS)
    text = texts(len(LEVELS))
    features: list[Tensor] = []
    net.model.unet.mid_block.register_forward_hook(lambda *seen: features.append(seen[2]))
    expected = net.model.unet(x, t, encoder_hidden_states=text).sample
    found, middle = net.model(x, t, text)
    assert torch.equal(found, expected)
    assert torch.equal(middle, features[0])


@shapes
@torch.no_grad()
def test_features_are_those_of_the_same_pass(side: int, changes: dict[str, Any]) -> None:
    net = latent(1, side=side, **changes)
    x, sigma, _ = at(net, LEVELS)
    text = texts(len(LEVELS))
    x0, features = net.denoise_with_features(x, sigma, text)
    assert torch.equal(x0, net.denoise(x, sigma, text))
    assert torch.equal(features, net.features(x, sigma, text))
    channels, resolution = net.features_shape
    assert features.shape == (len(LEVELS), channels, resolution, resolution)
    assert Discriminator(*net.features_shape)(features).shape == (len(LEVELS),)


@torch.no_grad()
def test_features_cost_no_decoder() -> None:
    net = latent(1)
    for block in net.model.unet.up_blocks:
        block.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    net.features(*at(net, LEVELS)[:2], texts(len(LEVELS)))


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_parts_are_refused(name: str) -> None:
    asked = {
        "center_input_sample": True,
        "dual_cross_attention": True,
        "num_class_embeds": 4,
        "encoder_hid_dim": 8,
        "time_cond_proj_dim": 8,
    }
    with pytest.raises(ConfigError, match=name):
        build_latent(text_network(**{name: asked.get(name, "another")}), LATENT_SHAPE, 0)


def test_what_diffusers_cannot_build_is_a_clear_error() -> None:
    for wrong in ({"no_such_option": 1}, {"down_block_types": ["NoBlock", "DownBlock2D"]}, {"norm_num_groups": 7}):
        with pytest.raises(ConfigError, match="cannot build"):
            build_latent(text_network(**wrong), LATENT_SHAPE, 0)


# --- training ---


def test_recompute_gives_the_same_gradients() -> None:
    passes: list[int] = []
    found = []
    for recompute in (False, True):
        net = latent(1, **DEEP).requires_grad_(True)
        net.set_recompute(recompute)
        net.model.unet.down_blocks[0].resnets[0].norm1.register_forward_hook(lambda *_: passes.append(1))
        x, sigma, _ = at(net, LEVELS)
        x0, features = net.denoise_with_features(x, sigma, texts(len(LEVELS)))
        (x0.square().mean() + features.square().mean()).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
        assert len(passes) == (3 if recompute else 1)  # once more on the way back
    plain, again = found
    assert all(g is not None for g in plain.values())
    assert all(relative(again[name], g) < 1e-6 for name, g in plain.items() if g.any())


def test_critics_gradient_reaches_the_fake_scores_encoder_and_the_head() -> None:
    step = latent_adm_step(discriminator_weight=1e3)
    x, cond = images_and_conditions(step)
    (draws,) = step.draws.batches(0, BATCH)
    step._logits(x.detach(), cond, "critic", draws).sum().backward()
    reached = {name.split(".")[2] for name, p in step.fake_score.named_parameters() if p.grad is not None}
    assert reached == {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    assert all(p.grad is not None for p in step.discriminator.parameters())
    assert not any(p.grad is not None for net in (step.student, step.teacher) for p in net.parameters())


# --- files ---


def test_file_gives_the_same_bits(tmp_path: Path) -> None:
    net, path = latent(5, **DEEP), tmp_path / "net.safetensors"
    save_network(net, path)
    again = load_network(path)
    assert isinstance(again, LatentDenoiser)
    expected, found = net.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert "empty" in found
    assert all(torch.equal(t, found[name]) for name, t in expected.items())
    assert (again.image_shape, again.text_shape) == (LATENT_SHAPE, (TEXT_LENGTH, WIDTH))
    assert torch.equal(again.noise_grid, net.noise_grid)
    with torch.no_grad():
        assert torch.equal(again.generate(X, texts(BATCH)), net.generate(X, texts(BATCH)))
    save_network(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_weights_are_a_function_of_the_seed() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (build_latent(text_network(), LATENT_SHAPE, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(t, same[name]) for name, t in one.items())
    assert not all(torch.equal(t, other[name]) for name, t in one.items())
