"""What a stage trains on and with, opened from the manifests that the plan names: of classes, or of text."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from msd.config import Network, TextNetwork
from msd.data.archive import Conditions, LabelledImages, open_half
from msd.errors import ConfigError
from msd.latent.archive import CaptionedLatents, Prompts, open_latents
from msd.networks import Backbone
from msd.networks.files import build_network
from msd.store import Manifest
from msd.text.embeddings import open_embeddings

Data = LabelledImages | CaptionedLatents


def open_training(manifests: Mapping[str, Manifest]) -> Data:
    """The training half, or the latents of it with their captions, verified by sha256.

    Args:
        manifests: ``data``, and ``embeddings`` where conditions are prompts.
    """
    if "embeddings" in manifests:
        return open_latents(manifests["data"], open_embeddings(manifests["embeddings"]))
    return open_half(manifests["data"], "train")


def open_conditions(part: list[int], manifests: Mapping[str, Manifest]) -> Conditions:
    """The conditions of a part: its classes, or the hidden states of its prompts."""
    rows = torch.tensor(part)
    return Prompts(open_embeddings(manifests["embeddings"]), rows) if "embeddings" in manifests else rows


def network_for(network: Network | TextNetwork, data: Data, seed: int) -> Backbone:
    """A freshly initialised network for the data; its weights are a function of ``seed`` alone.

    Raises:
        ConfigError: it does not suit the images, or the text encoder.
    """
    if isinstance(data, LabelledImages):
        assert isinstance(network, Network)  # the configuration sees to it
        return build_network(network, image_shape=data.image_shape, num_conditions=data.num_classes, seed=seed)
    from msd.networks.latent import build_latent

    assert isinstance(network, TextNetwork)
    if network.text_shape != data.embeddings.shape:
        raise ConfigError(
            "The denoiser and the text encoder do not belong together.",
            where="unet.cross_attention_dim and text_length",
            why=f"the encoder gives {data.embeddings.shape} (tokens, width), the denoiser wants {network.text_shape}",
        )
    net = build_latent(network, data.image_shape, seed)
    net.empty.copy_(data.embeddings.empty)
    return net
