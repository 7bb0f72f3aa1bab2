"""DM and fake-score numbers against DMD2's Stable Diffusion code on a tiny UNet; the views of x0 and ε."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rule import fill, relative_error
from safetensors.torch import load_file

from msd.distill.losses import dm_loss, fake_score_loss
from msd.networks.latent import LatentDenoiser, TextUNet

HERE = Path(__file__).parent / "sd"
INDEX = json.loads((HERE / "index.json").read_text())
TEXT_SHAPE = tuple(INDEX["tensors"]["text_embedding"][1:])


def build(seed: int, uncond: torch.Tensor) -> LatentDenoiser:
    scheduler = INDEX["scheduler"]
    net = LatentDenoiser(
        TextUNet(INDEX["unet"]),
        image_shape=(4, 8, 8),
        text_shape=TEXT_SHAPE,
        schedule={"beta_start": scheduler["beta_start"], "beta_end": scheduler["beta_end"]},
    )
    fill(net.model.unet, seed)
    net.empty.copy_(uncond[0])
    return net.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(HERE / "dmd2_sd_losses.safetensors")


@pytest.fixture(scope="module")
def teacher(golden: dict[str, torch.Tensor]) -> LatentDenoiser:
    return build(INDEX["seeds"]["teacher"], golden["uncond_embedding"])


@pytest.fixture
def fake_score(golden: dict[str, torch.Tensor]) -> LatentDenoiser:
    return build(INDEX["seeds"]["fake_score"], golden["uncond_embedding"])


def noised(
    golden: dict[str, torch.Tensor], net: LatentDenoiser, x: torch.Tensor, prefix: str
) -> tuple[torch.Tensor, ...]:
    sigma = net.noise_grid[golden[f"{prefix}.timesteps"]]
    return x + sigma.reshape(-1, 1, 1, 1) * golden[f"{prefix}.noise"], sigma


def guided(net: LatentDenoiser, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    unconditional = net.denoise_unconditional(x, sigma)
    return unconditional + scale * (net.denoise(x, sigma, text) - unconditional)


def test_noise_levels(golden: dict[str, torch.Tensor], teacher: LatentDenoiser) -> None:
    assert relative_error(teacher.alphas, golden["alphas_cumprod"]) <= 1e-6
    assert teacher.timestep(teacher.noise_grid).tolist() == list(range(1000))


def test_distribution_matching(
    golden: dict[str, torch.Tensor], teacher: LatentDenoiser, fake_score: LatentDenoiser
) -> None:
    x, text = golden["latents"].clone().requires_grad_(True), golden["text_embedding"]
    with torch.no_grad():
        z, sigma = noised(golden, teacher, x, "dm")
        real = guided(teacher, z, sigma, text, INDEX["real_guidance_scale"])
        fake = fake_score.denoise(z, sigma, text)
    loss, g = dm_loss(x, real, fake)
    loss.backward()
    assert relative_error(real, golden["dm.x0_teacher"]) <= 1e-5
    assert relative_error(fake, golden["dm.x0_fake"]) <= 1e-5
    assert relative_error(loss, golden["dm.loss"]) <= 1e-5
    assert relative_error(g, golden["dm.grad"]) <= 1e-5
    assert relative_error(x.grad, golden["dm.grad_wrt_latents"]) <= 1e-5


def test_fake_score(golden: dict[str, torch.Tensor], fake_score: LatentDenoiser) -> None:
    x, text = golden["latents"], golden["text_embedding"]
    z, sigma = noised(golden, fake_score, x, "fake")
    prediction = fake_score.denoise(z, sigma, text)
    loss = fake_score_loss(prediction, x, sigma, fake_score.sigma_data)
    loss.backward()
    assert relative_error(prediction, golden["fake.x0_pred"]) <= 1e-5
    assert relative_error(loss, golden["fake.loss"]) <= 1e-5
    gradient = fake_score.model.unet.conv_out.weight.grad
    assert relative_error(gradient, golden["fake.grad_conv_out_weight"]) <= 1e-5
