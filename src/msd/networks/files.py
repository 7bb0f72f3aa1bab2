"""Networks from a description, and their files: safetensors with the architecture in the metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from msd.config import Network, Song
from msd.errors import DamagedFileError
from msd.networks.adm import ADMUNet
from msd.networks.edm_pickle import read_edm_pickle
from msd.networks.precond import PRECONDITIONINGS, Preconditioned
from msd.networks.raw import RawNetwork
from msd.networks.song import SongUNet
from msd.store import canonical_json, write_with
from msd.weights import METADATA_KEY, NETWORK_FORMAT, read_header


def build_network(
    network: Network, *, image_shape: tuple[int, int, int], num_conditions: int, seed: int
) -> Preconditioned:
    """A freshly initialised network; its weights are a function of ``seed`` alone.

    Args:
        network: the architecture.
        image_shape: (C, H, W), square.
        num_conditions: number of classes.
        seed: of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _raw_network(network, image_shape, num_conditions)
        net = PRECONDITIONINGS[network.preconditioning](
            model, image_shape=image_shape, pixel_unshuffle=network.pixel_unshuffle
        )
    net.description = {
        # only what departs from the defaults: settings that later versions add do not change a file's bytes
        "network": network.model_dump(mode="json", exclude_defaults=True),
        "image_shape": list(image_shape),
        "num_conditions": num_conditions,
    }
    return net


def _raw_network(network: Network, image_shape: tuple[int, int, int], num_conditions: int) -> RawNetwork:
    channels, height, _ = image_shape
    fold = network.pixel_unshuffle
    inside = channels * fold**2
    common: dict[str, Any] = {
        "resolution": height // fold,
        "in_channels": inside,
        "out_channels": inside * (2 if network.preconditioning == "iddpm" else 1),  # it predicts a variance too
        "label_dim": num_conditions,
        "model_channels": network.model_channels,
        "channel_mult": tuple(network.channel_mult),
        "num_blocks": network.num_blocks,
        "attn_resolutions": tuple(network.attn_resolutions),
        "dropout": network.dropout,
        "label_dropout": network.label_dropout,
        "augment_dim": network.augment_dim,
    }
    if network.architecture == "adm":
        return ADMUNet(**common)
    return SongUNet(**common, **(network.song or Song()).model_dump())


def save_network(net: Preconditioned, path: Path) -> None:
    """Write weights (as they are) and architecture to one safetensors file, atomically."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    write_safetensors(Path(path), tensors, NETWORK_FORMAT, net.description)


def load_network(path: Path | str) -> Preconditioned:
    """Read a network: a file of ``save_network``, or EDM's ``.pkl``. Eval mode, gradients off, on the CPU.

    Raises:
        MissingFileError: no such file.
        DamagedFileError: truncated, no network, or weights that do not fit the architecture.
        UnsafeFileError: a pickle that holds more than a network; nothing of it was run.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        file = read_edm_pickle(path)
        net = build_network(file.network, image_shape=file.image_shape, num_conditions=file.num_conditions, seed=0)
        fill(net, file.tensors, path)
        return net.eval().requires_grad_(False)
    tensors, description = read_safetensors(path, NETWORK_FORMAT)
    try:
        net = build_network(
            Network.model_validate(description["network"]),
            image_shape=tuple(description["image_shape"]),
            num_conditions=description["num_conditions"],
            seed=0,
        )
    except (KeyError, TypeError, ValueError) as e:
        raise DamagedFileError("A weights file describes no network.", where=str(path), why=str(e)) from None
    fill(net, tensors, path)
    return net.eval().requires_grad_(False)


def fill(net: nn.Module, tensors: dict[str, torch.Tensor], path: Path | str) -> None:
    """Set the weights of ``net`` to those read from ``path``.

    Raises:
        DamagedFileError: they do not fit.
    """
    try:
        net.load_state_dict(tensors)
    except RuntimeError as e:
        raise DamagedFileError(
            "Weights do not fit the architecture in the file.", where=str(path), why=str(e)
        ) from None


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], file_format: str, description: Any) -> None:
    """Write tensors with their format and description, atomically; equal content gives equal bytes."""
    # one key: safetensors writes several in random order
    metadata = {METADATA_KEY: canonical_json({"format": file_format, "description": description})}
    write_with(path, lambda p: save_file(tensors, p, metadata=metadata))


def read_safetensors(path: Path, file_format: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and description of a safetensors file of a known format.

    Raises:
        MissingFileError, DamagedFileError.
    """
    description, _ = read_header(path, file_format)
    return load_file(path), description
