"""DMD2's one-step ImageNet students (arXiv 2405.14867): ``pytorch_model.bin``, read as tensors and nothing else.

The file is the state dict of the generator alone, EDM's preconditioned ADM UNet, as accelerate saves it with
``torch.save``. Its names are EDM's, hence ours, apart from constant filter buffers and a prefix that wrappers of
multi-GPU training add. It says nothing of the architecture; that must be given.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from msd.config import Network
from msd.errors import DamagedFileError, MissingFileError, UnsafeFileError
from msd.networks.edm_pickle import CONSTANT_BUFFERS
from msd.networks.files import first_few, network_of
from msd.networks.precond import Preconditioned

FIRST = "model.map_layer0.weight"  # every EDM network has it once


def load_dmd2_student(
    path: Path, network: Network, image_shape: tuple[int, int, int], num_conditions: int
) -> Preconditioned:
    """The generator in a DMD2 checkpoint. Eval mode, gradients off, on the CPU; ``save_network`` converts it.

    Args:
        path: ``pytorch_model.bin``.
        network: the architecture; the released students have that of EDM's ImageNet teacher (``networks.published``).
        image_shape: (C, H, W).
        num_conditions: number of classes.

    Raises:
        MissingFileError, UnsafeFileError, DamagedFileError: see ``read_dmd2_checkpoint``.
        DamagedFileError: the tensors are not those of the architecture.
    """
    return network_of(read_dmd2_checkpoint(path), network, image_shape, num_conditions, path)


def read_dmd2_checkpoint(path: Path) -> dict[str, Tensor]:
    """EDM's parameter name (``model.enc.…``) → float32, without constants. Nothing in the file is run.

    Raises:
        MissingFileError: no such file.
        UnsafeFileError: it holds more than tensors.
        DamagedFileError: truncated, no state dict, or not of exactly one EDM network.
    """
    if not path.is_file():
        raise MissingFileError("A weights file does not exist.", where=str(path))
    state = _load(path)
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise DamagedFileError("A checkpoint holds no plain set of named tensors.", where=str(path))
    prefixes = [name.removesuffix(FIRST) for name in state if name.endswith(FIRST)]
    if len(prefixes) != 1 or not all(name.startswith(prefixes[0]) for name in state):
        raise DamagedFileError(
            "A checkpoint is not that of one generator.",
            where=str(path),
            why=f"{len(prefixes)} networks of EDM in it, and {first_few(sorted(state))}",
            todo="DMD2 keeps the generator in pytorch_model.bin; pytorch_model_1.bin holds the others.",
        )
    return {
        name.removeprefix(prefixes[0]): tensor.float()
        for name, tensor in state.items()
        if name.rpartition(".")[2] not in CONSTANT_BUFFERS
    }


def _load(path: Path) -> object:
    """What ``torch.save`` wrote, if it is made of tensors and plain containers."""
    again = "Download it again, and check its sha256."
    trusted = "Do not use this file, unless you know its origin and save its tensors alone with torch.save."
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as f:
            bare = f.read(1) == pickle.PROTO
        if bare:
            raise UnsafeFileError("A file is a bare pickle; it was not run.", where=str(path), todo=trusted)
        raise DamagedFileError("A file is no checkpoint of PyTorch, or a part of one.", where=str(path), todo=again)
    try:
        asked = get_unsafe_globals_in_checkpoint(os.fspath(path))
        if asked:
            raise UnsafeFileError(
                "A checkpoint holds more than tensors; nothing of it was run.",
                where=str(path),
                why=f"it asks for {first_few(asked)}",
                todo=trusted,
            )
        with zipfile.ZipFile(path) as archive:  # torch does not look at the check sums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has another check sum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnsafeFileError:
        raise
    except Exception as e:  # a damaged file can fail in any way
        raise DamagedFileError(
            "A checkpoint cannot be read.", where=str(path), why=str(e).split("\n")[0], todo=again
        ) from None
