"""What networks cost is computed from their shapes, and right."""

from __future__ import annotations

import pytest
import torch
from tiny import ROOT

from msd.config import Network, TextNetwork, load
from msd.errors import ConfigError
from msd.networks.files import raw_network
from msd.networks.published import published_text_network
from msd.networks.summary import network_cost
from msd.registry import KNOWN
from msd.training.ledger import counted_flops

IMAGENET = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]}
SMALL = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}


def test_the_imagenet_teacher_has_its_known_size() -> None:
    cost = network_cost(Network.model_validate(IMAGENET), (3, 64, 64), 1000)
    assert cost.parameters == 295_899_267
    assert round(cost.gflop, 1) == 219.3


def test_width_changes_both() -> None:
    full, narrow = (
        network_cost(Network.model_validate(IMAGENET | {"model_channels": c}), (3, 64, 64), 1000) for c in (192, 128)
    )
    assert narrow.parameters < 0.5 * full.parameters
    assert narrow.flops < 0.5 * full.flops
    assert narrow.activation_bytes < full.activation_bytes


@pytest.mark.parametrize("architecture", ["adm", "song"])
def test_counts_are_those_of_a_real_network(architecture: str) -> None:
    network = Network.model_validate(SMALL | {"architecture": architecture, "attn_resolutions": [8]})
    cost = network_cost(network, (3, 16, 16), 4)
    model = raw_network(network, (3, 16, 16), 4)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    kept: dict[int, torch.Tensor] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with counted_flops() as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(torch.randn(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, 4))
    assert abs(counter.flops / cost.flops - 1) < 0.01
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    assert abs(sum(t.untyped_storage().nbytes() for t in kept.values()) / cost.activation_bytes - 1) < 0.2


def test_folding_makes_a_network_cheap() -> None:
    plain, folded = (
        network_cost(Network.model_validate(SMALL | {"pixel_unshuffle": fold}), (1, 28, 28), 10) for fold in (1, 2)
    )
    assert folded.flops < 0.4 * plain.flops


def test_images_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="cannot take images of 28×28"):
        raw_network(Network.model_validate(SMALL | {"channel_mult": [1, 2, 2, 2]}), (1, 28, 28), 10)


def test_the_small_network_of_text_has_83_percent_fewer_parameters() -> None:
    small = load(ROOT / "params.yaml", [ROOT / "experiments/sd15-coco.yaml"]).networks["minus83"]
    assert isinstance(small, TextNetwork)
    full, latents = published_text_network(KNOWN["stable-diffusion-v1-5"])
    parameters = {
        net: network_cost(network, latents, 0).parameters for net, network in {"full": full, "small": small}.items()
    }
    assert parameters["full"] == 859_520_964
    assert abs(parameters["small"] / (0.17 * parameters["full"]) - 1) < 0.005
    assert small.text_shape == full.text_shape == (77, 768)
    same = ("down_block_types", "up_block_types", "attention_head_dim", "cross_attention_dim")
    assert all(small.unet[name] == full.unet[name] for name in same)
