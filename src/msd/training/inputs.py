"""What a stage trains on and with, opened from the manifests that the plan names: of classes, or of text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from msd.config import Network, TextNetwork
from msd.data.archive import Conditions, LabelledImages, open_half
from msd.errors import ConfigError
from msd.latent.archive import CaptionedLatents, Prompts, open_latents
from msd.networks import Backbone
from msd.networks.files import build_network
from msd.store import Manifest
from msd.text.embeddings import Embeddings, open_embeddings

Data = LabelledImages | CaptionedLatents


class Inputs:
    """Opened when asked for, once, verified by sha256.

    Args:
        manifests: ``data``, and ``embeddings`` where conditions are prompts.
    """

    def __init__(self, manifests: Mapping[str, Manifest]) -> None:
        self._manifests = manifests

    @cached_property
    def embeddings(self) -> Embeddings | None:
        """Of all prompts; None: conditions are classes."""
        manifest = self._manifests.get("embeddings")
        return open_embeddings(manifest) if manifest else None

    @cached_property
    def data(self) -> Data:
        """The training half, or the latents of it with their captions."""
        if self.embeddings is None:
            return open_half(self._manifests["data"], "train")
        return open_latents(self._manifests["data"], self.embeddings)

    def conditions(self, part: list[int]) -> Conditions:
        """The conditions of a part: its classes, or the hidden states of its prompts."""
        rows = torch.tensor(part)
        return rows if self.embeddings is None else Prompts(self.embeddings, rows)

    def check_teacher(self, teacher: Backbone, manifest: Manifest) -> None:
        """Check that a teacher takes the conditions of these data.

        Raises:
            ConfigError: it wants other hidden states, or was made with another text encoder.
        """
        if self.embeddings is None:
            return
        encoder = self.embeddings.manifest.results["encoder"]["sha256"]
        known = manifest.results["origin"].get("converted_from", {}).get("text_encoder_sha256", encoder)
        if teacher.condition_shape != self.embeddings.shape or known != encoder:
            raise ConfigError(
                "The teacher and the text encoder do not belong together.",
                where=str(manifest.path),
                why=f"the teacher wants (tokens, width) {teacher.condition_shape}, encoder {known[:8]}; "
                f"text.components gives {self.embeddings.shape}, encoder {encoder[:8]}",
                todo="Take the teacher's own components.",
            )


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
