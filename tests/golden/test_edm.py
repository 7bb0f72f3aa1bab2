"""The ADM network, its preconditioning and the Heun sampler against outputs of the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rule import fill, relative_error
from safetensors.torch import load_file

from msd.diffusion import heun
from msd.networks.adm import ADMUNet
from msd.networks.precond import EDMPrecond

HERE = Path(__file__).parent / "edm"
INDEX = json.loads((HERE / "index.json").read_text())


def build(case: str) -> EDMPrecond:
    arguments = INDEX[case]["init_kwargs"]
    channels, resolution, classes = arguments["img_channels"], arguments["img_resolution"], arguments["label_dim"]
    model = ADMUNet(
        resolution=resolution,
        in_channels=channels,
        out_channels=channels,
        label_dim=classes,
        model_channels=arguments["model_channels"],
        channel_mult=tuple(arguments["channel_mult"]),
        num_blocks=arguments["num_blocks"],
        attn_resolutions=tuple(arguments["attn_resolutions"]),
        dropout=arguments.get("dropout", 0.0),
    )
    net = EDMPrecond(model, image_shape=(channels, resolution, resolution), label_dim=classes)
    fill(net, INDEX[case]["seed"])
    return net.eval()


@pytest.mark.parametrize("case", ["adm_cond", "adm_uncond_gray"])
def test_denoised_and_sampler_match_reference(case: str) -> None:
    net, io = build(case), load_file(HERE / f"{case}.io.safetensors")
    assert net.num_parameters == INDEX[case]["parameters"]
    labels = io.get("class_labels")
    with torch.no_grad():
        assert relative_error(net(io["x"], io["sigma"], labels), io["denoised"]) <= 1e-5
        one = lambda x, s: net(x, s.expand(len(x)), labels)  # noqa: E731
        samples = heun(one, io["latents"], num_steps=18)
    assert relative_error(samples, io["heun18_samples"]) <= 1e-4
