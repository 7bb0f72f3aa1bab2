"""DM, fake-score and adversarial losses against DMD2's reference code: values, gradients, head and bottleneck."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rule import fill, relative_error, tensor_by_rule
from safetensors.torch import load_file

from msd.distill.losses import discriminator_loss, dm_loss, fake_score_loss, generator_adversarial_loss
from msd.networks import Preconditioned
from msd.networks.discriminator import Discriminator
from msd.networks.edm_arguments import describe
from msd.networks.files import build_network

HERE = Path(__file__).parent / "dmd2"
INDEX = json.loads((HERE / "index.json").read_text())


def build(seed: int) -> Preconditioned:
    network, image_shape, classes = describe("EDMPrecond", (), INDEX["init_kwargs"])
    net = build_network(network, image_shape=image_shape, num_conditions=classes, seed=0)
    fill(net, seed)
    return net.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(HERE / "dmd2_losses.safetensors")


@pytest.fixture
def fake_score() -> Preconditioned:
    return build(INDEX["seeds"]["fake_score"])


@pytest.fixture
def head() -> Discriminator:
    head = Discriminator(96, 4)
    with torch.no_grad():
        for name, p in head.layers.named_parameters():
            p.copy_(tensor_by_rule(INDEX["seeds"]["head"], name, tuple(p.shape)))
    return head


def noised(
    golden: dict[str, torch.Tensor], x: torch.Tensor, prefix: str, i: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    sigma = golden["karras_sigmas"][golden[f"{prefix}.timesteps{i}"]]
    return x + sigma.reshape(-1, 1, 1, 1) * golden[f"{prefix}.noise{i}"], sigma


def test_noise_grid(golden: dict[str, torch.Tensor], fake_score: Preconditioned) -> None:
    assert relative_error(fake_score.noise_grid, golden["karras_sigmas"]) <= 1e-6


def test_distribution_matching(golden: dict[str, torch.Tensor], fake_score: Preconditioned) -> None:
    teacher = build(INDEX["seeds"]["teacher"])
    x, cond = golden["images"].clone().requires_grad_(True), golden["labels"].argmax(1)
    with torch.no_grad():
        z, sigma = noised(golden, x, "dm")
        real, fake = teacher.denoise(z, sigma, cond), fake_score.denoise(z, sigma, cond)
    loss, g = dm_loss(x, real, fake)
    loss.backward()
    assert relative_error(real, golden["dm.pred_real"]) <= 1e-5
    assert relative_error(fake, golden["dm.pred_fake"]) <= 1e-5
    assert relative_error(loss, golden["dm.loss"]) <= 1e-5
    assert relative_error(g, golden["dm.grad"]) <= 1e-5
    assert relative_error(x.grad, golden["dm.grad_wrt_images"]) <= 1e-5


def test_fake_score(golden: dict[str, torch.Tensor], fake_score: Preconditioned) -> None:
    x, cond = golden["images"], golden["labels"].argmax(1)
    z, sigma = noised(golden, x, "fake")
    prediction = fake_score.denoise(z, sigma, cond)
    loss = fake_score_loss(prediction, x, sigma, fake_score.sigma_data)
    loss.backward()
    assert relative_error(prediction, golden["fake.x0_pred"]) <= 1e-5
    assert relative_error(loss, golden["fake.loss"]) <= 1e-5
    assert relative_error(fake_score.model.out_conv.weight.grad, golden["fake.grad_out_conv_weight"]) <= 1e-5


def test_generator_adversarial(
    golden: dict[str, torch.Tensor], fake_score: Preconditioned, head: Discriminator
) -> None:
    x, cond = golden["images"].clone().requires_grad_(True), golden["labels"].argmax(1)
    z, sigma = noised(golden, x, "gen_cls")
    loss = generator_adversarial_loss(head(fake_score.features(z, sigma, cond)))
    loss.backward()
    assert relative_error(loss, golden["gen_cls.loss"]) <= 1e-5
    assert relative_error(x.grad, golden["gen_cls.grad_wrt_images"]) <= 1e-5


def test_discriminator(golden: dict[str, torch.Tensor], fake_score: Preconditioned, head: Discriminator) -> None:
    logits = []
    for i, (images, labels) in enumerate((("real_images", "real_labels"), ("images", "labels"))):
        z, sigma = noised(golden, golden[images], "guidance_cls", i)
        logits.append(head(fake_score.features(z, sigma, golden[labels].argmax(1))))
    loss = discriminator_loss(*logits)
    loss.backward()
    assert relative_error(logits[0].sigmoid(), golden["guidance_cls.prob_real"].flatten()) <= 1e-5
    assert relative_error(logits[1].sigmoid(), golden["guidance_cls.prob_fake"].flatten()) <= 1e-5
    assert relative_error(loss, golden["guidance_cls.loss"]) <= 1e-5
    assert relative_error(head.layers[-1].weight.grad, golden["guidance_cls.grad_head_last_weight"]) <= 1e-5
