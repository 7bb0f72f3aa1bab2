"""Networks, preconditionings, samplers and pickles against outputs of EDM's reference implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from edm_reference import FOLDER, INDEX, build
from rule import relative_error, tensor_by_rule
from safetensors.torch import load_file

from msd.diffusion import heun_sample
from msd.networks import load_network

NETWORK, SAMPLER = 1e-5, 1e-4
SAMPLED = [case for case, entry in INDEX.items() if entry["preconditioning"] == "EDMPrecond"]
PICKLES = [case for case, entry in INDEX.items() if "pickle" in entry]


@pytest.mark.parametrize("case", INDEX)
def test_denoised_matches_reference(case: str) -> None:
    net, io = build(case), load_file(FOLDER / f"{case}.io.safetensors")
    assert net.num_parameters == INDEX[case]["parameters"]
    labels = io.get("class_labels")
    with torch.no_grad():
        denoised = net(io["x"], io["sigma"], labels)
        assert denoised.dtype == torch.float32
        assert relative_error(denoised, io["denoised"]) <= NETWORK
        if labels is not None:
            assert torch.equal(net(io["x"], io["sigma"], labels.argmax(1)), denoised)
        if "augment_labels" in io:
            augmented = net(io["x"], io["sigma"], labels, io["augment_labels"])
            assert relative_error(augmented, io["denoised_augmented"]) <= NETWORK


@pytest.mark.parametrize("case", SAMPLED)
def test_sampler_matches_reference(case: str) -> None:
    net, io = build(case), load_file(FOLDER / f"{case}.io.safetensors")
    asked: list[float] = []
    net.register_forward_pre_hook(lambda _, inputs: asked.append(float(inputs[1])))
    samples = heun_sample(net, io["latents"], io.get("class_labels"), num_steps=18)
    assert relative_error(samples, io["heun18_samples"]) <= SAMPLER
    levels = sorted(set(asked), reverse=True)
    assert relative_error(torch.tensor(levels), io["heun18_sigmas"][: len(levels)]) <= 1e-6


@pytest.mark.parametrize("case", PICKLES)
def test_reference_pickle_loads_exactly(case: str, shared: Path) -> None:
    net, seed = load_network(shared / "golden" / "edm" / INDEX[case]["pickle"]), INDEX[case]["seed"]
    assert net.num_parameters == INDEX[case]["parameters"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, tensor_by_rule(seed, name, tuple(tensor.shape))), name
    io = load_file(FOLDER / f"{case}.io.safetensors")
    with torch.no_grad():
        assert relative_error(net(io["x"], io["sigma"], io["class_labels"]), io["denoised"]) <= NETWORK
