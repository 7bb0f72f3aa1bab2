"""Networks from a description, and their files: safetensors with the architecture in the metadata."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from msd.config import Network, TextNetwork
from msd.errors import ConfigError, DamagedFileError
from msd.networks.adm import ADMUNet
from msd.networks.backbone import Backbone
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
        model = raw_network(network, image_shape, num_conditions)
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


def raw_network(network: Network, image_shape: tuple[int, int, int], num_conditions: int) -> RawNetwork:
    """The UNet alone, freshly initialised from torch's global stream.

    Raises:
        ConfigError: the images' size does not suit the network.
    """
    channels, height, width = image_shape
    fold, halvings = network.pixel_unshuffle, len(network.channel_mult) - 1
    if height != width or height % (fold * 2**halvings):
        raise ConfigError(
            f"This network cannot take images of {height}×{width}.",
            why=f"pixel_unshuffle {fold} and {halvings} halvings need a square whose side {fold * 2**halvings} divides",
            todo="Give the network fewer levels (channel_mult), or resize the images.",
        )
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
    assert network.song is not None  # the configuration sees to it
    return SongUNet(**common, **network.song.model_dump())


def save_network(net: Backbone, path: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write weights (as they are) and architecture to one safetensors file, atomically.

    Args:
        state: the network's weights by name, where it holds only a share of them; None: its own.
    """
    write_safetensors(Path(path), net.state_dict() if state is None else state, NETWORK_FORMAT, net.description)


def load_network(path: Path | str) -> Backbone:
    """Read a network: a file of ``save_network``, or EDM's ``.pkl``. Eval mode, gradients off, on the CPU.

    Raises:
        MissingFileError: no such file.
        DamagedFileError: truncated, no network, or weights that do not fit the architecture.
        UnsafeFileError: a pickle that holds more than a network; nothing of it was run.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        file = read_edm_pickle(path)
        return network_of(file.tensors, file.network, file.image_shape, file.num_conditions, path)
    tensors, description = read_safetensors(path, NETWORK_FORMAT)
    network, image_shape, num_conditions = described_network(description, path)
    if isinstance(network, TextNetwork):
        return latent_of(tensors, network, image_shape, path)
    return network_of(tensors, network, image_shape, num_conditions, path)


def latent_of(
    tensors: dict[str, torch.Tensor], network: TextNetwork, image_shape: tuple[int, int, int], path: Path
) -> Backbone:
    """The text-conditional denoiser whose weights were read from ``path``.

    Raises:
        DamagedFileError: the weights are not those of the architecture.
        ConfigError: the UNet is of a kind that is not supported.
    """
    from msd.networks.latent import LatentDenoiser, text_unet  # diffusers takes seconds to import

    with torch.device("meta"):
        model = text_unet(network, image_shape)
    net = LatentDenoiser.of(model, network, image_shape)
    fill(net, tensors, path, assign=True)
    return net.eval().requires_grad_(False)


def network_of(
    tensors: dict[str, torch.Tensor],
    network: Network,
    image_shape: tuple[int, int, int],
    num_conditions: int,
    path: Path,
) -> Preconditioned:
    """The network whose weights were read from ``path``. Names and shapes are compared before memory is taken.

    Raises:
        DamagedFileError: the weights are not those of the architecture.
    """
    try:
        with torch.device("meta"):
            model = raw_network(network, image_shape, num_conditions)
    except (ConfigError, RuntimeError) as e:
        why = e.why if isinstance(e, ConfigError) else str(e)
        raise DamagedFileError("A weights file describes an impossible network.", where=str(path), why=why) from None
    expected = {f"model.{name}": t.shape for name, t in model.state_dict().items()}
    check_fit({name: t.shape for name, t in tensors.items()}, expected, path)
    net = build_network(network, image_shape=image_shape, num_conditions=num_conditions, seed=0)
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)


def check_fit(found: dict[str, torch.Size], expected: dict[str, torch.Size], path: Path | str) -> None:
    """Compare names and shapes of weights with those of an architecture.

    Raises:
        DamagedFileError: they differ; the first few are named.
    """
    both = [n for n in expected if n in found]
    lists = {
        "missing": [n for n in expected if n not in found],
        "unexpected": [n for n in found if n not in expected],
        "of another shape": [
            f"{n} {tuple(found[n])} for {tuple(expected[n])}" for n in both if found[n] != expected[n]
        ],
    }
    problems = [f"{len(names)} {what}: {first_few(names)}" for what, names in lists.items() if names]
    if problems:
        raise DamagedFileError(
            "Weights do not fit the architecture.",
            where=str(path),
            why="; ".join(problems),
            todo="Give the architecture, image size and number of classes that they were trained with.",
        )


def first_few(names: list[str], count: int = 3) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def described_network(
    description: dict[str, Any], path: Path
) -> tuple[Network | TextNetwork, tuple[int, int, int], int]:
    """Architecture, image shape (C, H, W) and number of classes from the metadata of the file ``path``.

    Raises:
        DamagedFileError: it does not say so.
    """
    try:
        channels, height, width = description["image_shape"]
        kind = TextNetwork if description["network"].get("architecture") == "unet2d" else Network
        return kind.model_validate(description["network"]), (channels, height, width), description["num_conditions"]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DamagedFileError("A weights file describes no network.", where=str(path), why=str(e)) from None


def fill(net: nn.Module, tensors: dict[str, torch.Tensor], path: Path | str, assign: bool = False) -> None:
    """Set the weights of ``net`` to those read from ``path``.

    Args:
        assign: take the tensors themselves, for a network that was built on the meta device.

    Raises:
        DamagedFileError: they do not fit.
    """
    check_fit({n: t.shape for n, t in tensors.items()}, {n: t.shape for n, t in net.state_dict().items()}, path)
    net.load_state_dict(tensors, assign=assign)


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], file_format: str, description: Any) -> None:
    """Write tensors with their format, description and digest, atomically; equal content gives equal bytes."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    about = {"format": file_format, "description": description, "sha256": tensors_sha256(tensors)}

    def write(temporary: Path) -> None:
        try:
            # one key: safetensors writes several in random order
            save_file(tensors, temporary, metadata={METADATA_KEY: canonical_json(about)})
        except SafetensorError as e:  # a full disk, say
            raise OSError(errno.EIO, str(e), str(path)) from e

    write_with(path, write)


def read_safetensors(path: Path, file_format: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and description of a safetensors file of a known format, checked against the digest that it carries.

    Raises:
        MissingFileError, DamagedFileError.
    """
    header = read_header(path, file_format)
    tensors = load_file(path)
    if tensors_sha256(tensors) != header.sha256:
        raise DamagedFileError(
            "The tensors of a weights file are not those that were written.",
            where=str(path),
            why="their sha256 is another than the file's own record",
            todo="Fetch or make the file again.",
        )
    return tensors, header.description


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
