"""A text-conditional teacher from outside → one safetensors file of ours, with the states of the empty prompt.

Reads a local diffusers folder, or one file in the layout of Stable Diffusion's first release. Nothing is downloaded and
no pickle is read. Noise levels or predictions of another kind than ``LatentDenoiser``'s are an error, as they would
load and give wrong images. The VAE and the text encoder stay where they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from msd import store
from msd.config import Schedule, TextNetwork
from msd.errors import ConfigError, DamagedFileError, MissingFileError, UnsafeFileError
from msd.networks.convert import convert
from msd.networks.files import first_few, latent_of
from msd.networks.published import published_text_network
from msd.registry import KNOWN
from msd.text.encoder import TextEncoder, open_encoder
from msd.weights import weights_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ABSENT: dict[str, Any] = {  # what a scheduler's file may leave out, and then means
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
SHAPE = ("sample_size", "in_channels", "out_channels")  # of the latents; our description has them apart
ORIGINAL, AVERAGED = "model.diffusion_model.", "model_ema."


def adopt_pipeline(folder: Path, out: Path) -> dict[str, Any]:
    """Write the UNet of a diffusers folder (``unet/``, ``scheduler/``, ``text_encoder/``, ``tokenizer/``) to ``out``.

    Half precision becomes float32.

    Returns:
        The origin, which also lies beside ``out`` with the ending .json.

    Raises:
        MissingFileError: the folder lacks a file.
        UnsafeFileError: weights are a pickle; it was not read.
        ConfigError: the UNet, its noise levels or its prediction are of another kind than Stable Diffusion 1's, or it
            does not belong to the text encoder.
        DamagedFileError: a file cannot be read, or the weights are not those of the configuration.
    """
    place, files = folder / "unet", weights_files(folder / "unet", WEIGHTS)
    config = _dictionary(place / "config.json")
    schedule = _schedule(folder / "scheduler" / "scheduler_config.json")
    encoder = open_encoder(folder, "cpu")
    network, image_shape = _described(config, schedule, encoder, place / "config.json")
    sharded = files != (place / WEIGHTS,)
    further = {
        "config": config,
        "schedule": schedule.model_dump(),
        "text_encoder_sha256": encoder.sha256,
        "shards": {path.name: store.sha256_file(path) for path in files} if sharded else {},
    }
    net = latent_of(_of_seam(_read(files), encoder), network, image_shape, place)
    return convert(place / (INDEX if sharded else WEIGHTS), out, net, further)


def adopt_single_file(
    path: Path, components: Path, out: Path, architecture: tuple[TextNetwork, tuple[int, int, int]] | None = None
) -> dict[str, Any]:
    """Write the UNet of one file in the original layout (``model.diffusion_model.…``) to ``out``.

    Where the file has averaged weights (``model_ema.…``) too, they are taken. Its own text encoder is not looked at.

    Args:
        path: a safetensors file.
        components: a diffusers folder with ``text_encoder/`` and ``tokenizer/``.
        out: the file to write; the origin goes beside it with the ending .json.
        architecture: network and latent shape (C, h, w); None: Stable Diffusion v1.5's. The file does not say it, nor
            what the network predicts.

    Returns:
        The origin.

    Raises:
        MissingFileError, UnsafeFileError, ConfigError, DamagedFileError: as ``adopt_pipeline``.
    """
    network, image_shape = architecture or published_text_network(KNOWN["stable-diffusion-v1-5"])
    encoder = open_encoder(components, "cpu")
    _check_text(network.text_shape, encoder, components)
    tensors, averaged = _read_original(path)
    converted = _renamed(tensors, network.unet["layers_per_block"], path)
    net = latent_of(_of_seam(converted, encoder), network, image_shape, path)
    return convert(path, out, net, {"text_encoder_sha256": encoder.sha256, "averaged": averaged})


def _dictionary(path: Path) -> dict[str, Any]:
    value = store.read_json(path)
    if not isinstance(value, dict):
        raise DamagedFileError("A file of settings holds something else.", where=str(path))
    return value


def _schedule(path: Path) -> Schedule:
    """The noise levels of a scheduler's file. How the scheduler samples is of no importance."""
    found = ABSENT | _dictionary(path)
    odd = [f"{name} {found.get(name)!r}" for name, value in (SCHEDULE | ABSENT).items() if found.get(name) != value]
    if odd:
        raise ConfigError(
            "A teacher has noise levels or a prediction that are not supported.",
            where=str(path),
            why=", ".join(odd),
            todo="Take a network like Stable Diffusion 1: 1000 scaled_linear steps, and it predicts epsilon.",
        )
    try:
        return Schedule(beta_start=found["beta_start"], beta_end=found["beta_end"])
    except (KeyError, ValueError) as e:
        why = str(e).split("\n")[0]
        raise ConfigError("A scheduler does not say its betas.", where=str(path), why=why) from None


def _described(
    config: dict[str, Any], schedule: Schedule, encoder: TextEncoder, path: Path
) -> tuple[TextNetwork, tuple[int, int, int]]:
    """Network and latent shape of a ``unet/config.json``."""
    side, channels, out_channels = (config.get(name) for name in SHAPE)
    kind = config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel" or not isinstance(side, int) or channels != out_channels or not channels:
        raise ConfigError(
            "A UNet is not one that makes square latents from noise alone.",
            where=str(path),
            why=f"{kind} of {channels} channels in, {out_channels} out, sample_size {side}",
            todo="Take a text-to-image network, not one for inpainting, depth or upscaling.",
        )
    _check_text((encoder.length, config.get("cross_attention_dim")), encoder, path)
    network = TextNetwork(
        architecture="unet2d",
        unet={name: value for name, value in config.items() if name not in SHAPE},
        text_length=encoder.length,
        schedule=schedule,
    )
    return network, (channels, side, side)


def _check_text(text_shape: tuple[int, Any], encoder: TextEncoder, where: Path) -> None:
    if text_shape != (encoder.length, encoder.width):
        raise ConfigError(
            "A UNet and a text encoder do not belong together.",
            where=str(where),
            why=f"the UNet takes {text_shape[0]} states of width {text_shape[1]}, "
            f"the encoder makes {encoder.length} of {encoder.width}",
        )


def _read(files: tuple[Path, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as e:
            raise DamagedFileError("A weights file cannot be read.", where=str(path), why=str(e)) from None
    return tensors


def _of_seam(tensors: dict[str, Tensor], encoder: TextEncoder) -> dict[str, Tensor]:
    """Under the names that ``LatentDenoiser`` has, float32, with the states of the empty prompt."""
    empty = encoder.encode([""]).hidden[0]
    return {f"model.unet.{name}": tensor.float() for name, tensor in tensors.items()} | {"empty": empty}


def _read_original(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The UNet's tensors under their original names, and whether they are the averaged ones."""
    if not path.is_file():
        raise MissingFileError("A weights file does not exist.", where=str(path))
    if path.suffix != ".safetensors":
        raise UnsafeFileError(
            "A checkpoint is no safetensors file; it was not read.",
            where=str(path),
            todo="Take the release that ends in .safetensors.",
        )
    try:
        with safe_open(path, framework="pt") as f:
            held = set(f.keys())
            plain = sorted(name for name in held if name.startswith(ORIGINAL))
            flat = {name: AVERAGED + name.removeprefix("model.").replace(".", "") for name in plain}
            averaged = bool(plain) and held.issuperset(flat.values())
            return {name: f.get_tensor(flat[name] if averaged else name) for name in plain}, averaged
    except (SafetensorError, OSError) as e:
        raise DamagedFileError("A weights file cannot be read.", where=str(path), why=str(e)) from None


def _renamed(tensors: dict[str, Tensor], layers_per_block: int, path: Path) -> dict[str, Tensor]:
    """Original names → diffusers', by diffusers' own rules, which leave out what they do not know."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    try:
        found = convert_ldm_unet_checkpoint(dict(tensors), {"layers_per_block": layers_per_block})
    except (KeyError, IndexError, ValueError) as e:
        found, why = {}, f"{type(e).__name__}: {e}"
    else:
        why = f"{len(found)} of {len(tensors)} tensors have a known name"
    if not found or len(found) != len(tensors):
        raise DamagedFileError(
            "A checkpoint is not that of a Stable Diffusion UNet.",
            where=str(path),
            why=f"{why}; it begins with {first_few(sorted(tensors))}" if tensors else f"no tensor {ORIGINAL}…",
            todo="Take a file of Stable Diffusion 1 with its UNet.",
        )
    return found
