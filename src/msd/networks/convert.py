"""Foreign weights → our safetensors: tensors as they are, the architecture in the metadata, the origin beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from msd.errors import ConfigError, DamagedFileError
from msd.networks.backbone import Backbone
from msd.networks.files import load_network, save_network
from msd.store import code_version, file_record, sha256_file, write_json


def convert(
    source: Path, out: Path, net: Backbone | None = None, further: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the network of ``source`` to ``out`` and check that it comes back exactly.

    Args:
        source: an EDM pickle, or any file that ``net`` was read from.
        out: the safetensors file; its origin goes beside it with the ending .json, as ``msd export`` writes it.
        net: the network, if it was read already.
        further: what else is known of the source.

    Returns:
        The origin.

    Raises:
        ConfigError: ``out`` is the source, a folder, or has another ending.
        MissingFileError, DamagedFileError, UnsafeFileError: see ``load_network``. Nothing is written.
    """
    if out.suffix != ".safetensors" or out.is_dir() or out.resolve() == source.resolve():
        raise ConfigError("The file to write must end in .safetensors and be another than the source.", where=str(out))
    net = load_network(source) if net is None else net
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        aside = Path(folder) / out.name
        save_network(net, aside)
        again = load_network(aside).state_dict()
        for name, tensor in net.state_dict().items():
            if not torch.equal(tensor, again[name]):
                raise DamagedFileError(
                    "A converted file does not give its tensors back.",
                    where=str(out),
                    why=name,
                    todo="Check the disk.",
                )
        aside.replace(out)
    origin = {
        "weights": file_record(out, out.parent),
        "converted_from": {"name": source.name, "sha256": sha256_file(source), "bytes": source.stat().st_size}
        | (further or {}),
        "parameters": net.num_parameters,
        "image_shape": list(net.image_shape),
        "num_classes": net.num_conditions,
        "code": code_version(),
    }
    write_json(out.with_suffix(".json"), origin)
    return origin
