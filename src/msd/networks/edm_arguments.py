"""EDM's classes and init arguments (arXiv 2206.00364) → the networks of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msd.config import Network
from msd.errors import DamagedFileError

PRECONDITIONINGS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
ARCHITECTURES = {"DhariwalUNet": "adm", "SongUNet": "song"}

# EDM's defaults, for arguments that a file leaves out
ADM_DEFAULTS = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]}
SONG_DEFAULTS = {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
# arguments whose other values no published file uses and no class here knows
FIXED = {
    "channel_mult_emb": 4,
    "sigma_data": 0.5,
    "beta_d": 19.9,
    "beta_min": 0.1,
    "M": 1000,
    "epsilon_t": 1e-5,
    "C_1": 0.001,
    "C_2": 0.008,
}
VE_RANGE = {"sigma_min": 0.02, "sigma_max": 100}
IGNORED = {"use_fp16", "sigma_min", "sigma_max"}  # how and where it is run, not what it is
SHOWN = 300  # characters of foreign text in a message


def describe(
    class_name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Network, tuple[int, int, int], int]:
    """EDM's class and init arguments → the network, its image shape (C, H, W) and its number of classes.

    Raises:
        DamagedFileError: a class or a setting that is not known here.
    """
    if class_name not in PRECONDITIONINGS:
        raise DamagedFileError(
            "A pickle holds no EDM network under `ema`.",
            why=f"it holds {class_name[:SHOWN]}, expected one of {', '.join(PRECONDITIONINGS)}",
        )
    preconditioning = PRECONDITIONINGS[class_name]
    values = {**dict(zip(("img_resolution", "img_channels", "label_dim"), arguments, strict=False)), **options}
    usual = "DhariwalUNet" if preconditioning in ("edm", "iddpm") else "SongUNet"
    architecture = ARCHITECTURES.get(values.pop("model_type", usual))
    if architecture is None or len(arguments) > 3:
        raise DamagedFileError(
            "An EDM pickle holds an architecture that is not known here.", why=str(options.get("model_type"))[:SHOWN]
        )
    try:
        resolution, channels = int(values.pop("img_resolution")), int(values.pop("img_channels"))
    except (KeyError, TypeError, ValueError):
        raise DamagedFileError("An EDM pickle does not say how large its images are.") from None
    classes = int(values.pop("label_dim", 0))
    return _network(architecture, preconditioning, values), (channels, resolution, resolution), classes


def _network(architecture: str, preconditioning: str, arguments: dict[str, Any]) -> Network:
    fixed = FIXED | (VE_RANGE if preconditioning == "ve" else {})
    for name, value in fixed.items():
        if arguments.pop(name, value) != value:
            raise DamagedFileError("An EDM pickle has a setting that is not known here.", why=f"{name} is not {value}")
    values = {k: v for k, v in arguments.items() if k not in IGNORED}
    settings: dict[str, Any] = {"architecture": architecture, "preconditioning": preconditioning}
    defaults = ADM_DEFAULTS if architecture == "adm" else SONG_DEFAULTS
    for name, default in defaults.items():
        settings[name] = values.pop(name, default)
    settings["dropout"] = values.pop("dropout", 0.1)
    for name in ("label_dropout", "augment_dim"):
        settings[name] = values.pop(name, 0)
    if architecture == "song":
        settings["song"] = {
            "embedding": values.pop("embedding_type", "positional"),
            "noise_channel_mult": values.pop("channel_mult_noise", 1),
            "encoder": values.pop("encoder_type", "standard"),
            "decoder": values.pop("decoder_type", "standard"),
            "taps": values.pop("resample_filter", [1, 1]),
        }
    if values:
        raise DamagedFileError(
            "An EDM pickle has settings that are not known here.", why=", ".join(sorted(values))[:SHOWN]
        )
    try:
        return Network.model_validate(settings)
    except ValueError as e:
        raise DamagedFileError("An EDM pickle describes an impossible network.", why=str(e)[:SHOWN]) from None
