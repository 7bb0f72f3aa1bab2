"""EDM's network pickles, read without executing anything that they hold (arXiv 2206.00364's released files).

Such a pickle is ``{"ema": network, …}``, where every module is a *persistence record*: a class name, the source code of
its module, and its state with init arguments and tensors. The reader here gives inert stand-ins for the few names
that a real file uses, never runs the source code, and refuses every other name.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msd.config import Network
from msd.errors import DamagedFileError, MissingFileError, UnsafeFileError

PRECONDITIONINGS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
ARCHITECTURES = {"DhariwalUNet": "adm", "SongUNet": "song"}
SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
CONSTANT_BUFFERS = ("resample_filter",)

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
IGNORED = {"use_fp16", "sigma_min", "sigma_max", "force_fp32"}  # how and where it is run, not what it is


@dataclass(frozen=True)
class EDMFile:
    """What a pickle says.

    Attributes:
        network: the architecture.
        image_shape: (C, H, W).
        num_conditions: classes, 0 for an unconditional network.
        tensors: EDM's parameter name (``model.enc.…``) → float32.
    """

    network: Network
    image_shape: tuple[int, int, int]
    num_conditions: int
    tensors: dict[str, Tensor]


def read_edm_pickle(path: Path) -> EDMFile:
    """The network under ``ema`` of an EDM pickle; other entries are ignored.

    Raises:
        MissingFileError: no such file.
        UnsafeFileError: the pickle names something that a network file has no need of. Nothing was run.
        DamagedFileError: truncated or empty, no EDM network in it, or an architecture that is not known here.
    """
    if not path.is_file():
        raise MissingFileError("A weights file does not exist.", where=str(path))
    try:
        content = _Unpickler(path).load()
        return _file(content["ema"])
    except UnsafeFileError:
        raise
    except DamagedFileError as e:
        raise DamagedFileError(e.what, where=str(path), why=e.why) from None
    except Exception as e:  # a damaged pickle can fail in any way; none of them has run foreign code
        raise DamagedFileError(
            "An EDM pickle cannot be read.",
            where=str(path),
            why=f"{type(e).__name__}: {e}" if str(e) else type(e).__name__,
            todo="Download it again, and check its sha256.",
        ) from None


class _Stub:
    """Stands for an object of a module that is not imported: keeps its state, does nothing."""

    __slots__ = ("state",)
    state: dict[str, Any]

    def __new__(cls, *_: Any, **__: Any) -> _Stub:
        stub = super().__new__(cls)
        stub.state = {}
        return stub

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value


class _Dtype:
    """A numpy dtype of numbers."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_: Any) -> None:
        if code not in SCALARS:
            raise DamagedFileError("An EDM pickle holds an unknown number type.", why=repr(code))
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and layout; files come from little-endian machines."""


class _Function:
    """A function that a pickle may call. No attribute can be set on it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise DamagedFileError("An EDM pickle sets an attribute of a function.", why=name)


class _Record:
    """One persistence record: class name and state."""

    __slots__ = ("class_name", "state")

    def __init__(self, meta: Any) -> None:
        meta = meta.state if isinstance(meta, _Stub) else meta
        if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
            raise DamagedFileError("An EDM pickle has a record without a class name.")
        state = meta.get("state")
        self.class_name: str = meta["class_name"]
        self.state: dict[str, Any] = state if isinstance(state, dict) else {}


def _scalar(dtype: Any, data: Any) -> float | int | bool:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise DamagedFileError("An EDM pickle holds a number that is none.")
    (value,) = np.frombuffer(data, dtype="<" + dtype.code)
    return value.item()


def _storage(data: Any) -> Tensor:
    """The inner pickle of a storage: torch's own restricted reader decodes it, never the plain one."""
    if not isinstance(data, bytes):
        raise DamagedFileError("An EDM pickle has a storage that is no bytes.")
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UnsafeFileError(
            "The inner pickle of a tensor holds more than a tensor; it was not run.", why=str(e).split("\n")[0]
        ) from None
    if isinstance(storage, torch.UntypedStorage) or not isinstance(storage, torch.storage.TypedStorage):
        raise DamagedFileError("The inner pickle of a tensor holds no typed storage.", why=type(storage).__name__)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, refused unless it lies inside."""
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, Tensor)
        or len(size) != len(stride)
        or not all(isinstance(n, int) and n >= 0 for n in numbers)
    ):
        raise DamagedFileError("A tensor has impossible sizes.", why=f"offset {offset}, size {size}, stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel() or (0 not in size and last >= storage.numel()):
        raise DamagedFileError(
            "A tensor reaches beyond its storage.",
            why=f"offset {offset}, size {size}, stride {stride} in {storage.numel()} numbers",
        )
    return storage.as_strided(size, stride, offset).clone()


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise DamagedFileError("A parameter is no tensor.", why=type(data).__name__)
    return data


class _Unpickler(pickle.Unpickler):
    """Knows the names of a network pickle, and no other."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(path.read_bytes()))
        self.path = path
        # a fresh class for each file: a pickle can set attributes of a class that it names
        stub = type("_FileStub", (_Stub,), {"__slots__": ()})
        record = _Function(_Record)
        self.known: dict[tuple[str, str], Any] = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): record,
            ("collections", "OrderedDict"): OrderedDict,
            ("dnnlib.util", "EasyDict"): stub,
            ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
            ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
            ("torch.storage", "_load_from_bytes"): _Function(_storage),
            ("numpy._core.multiarray", "scalar"): _Function(_scalar),
            ("numpy.core.multiarray", "scalar"): _Function(_scalar),
            ("numpy", "dtype"): _Function(_Dtype),
            ("torch.nn.modules.container", "ModuleDict"): stub,
            ("torch.nn.modules.container", "ModuleList"): stub,
            ("torch.nn.modules.container", "Sequential"): stub,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise UnsafeFileError(
                f"A pickle asks for {module}.{name}, which no network file needs. Nothing of it was run.",
                where=str(self.path),
                todo="Do not use this file, unless you know its origin and convert it with the code that made it.",
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise DamagedFileError("An EDM pickle refers to something outside of itself.", why=repr(pid))


def _file(record: Any) -> EDMFile:
    if not isinstance(record, _Record):
        raise DamagedFileError("A pickle holds no EDM network under `ema`.", why=type(record).__name__)
    state = record.state
    network, image_shape, classes = describe(
        record.class_name, tuple(state.get("_init_args") or ()), _plain(state.get("_init_kwargs") or {})
    )
    tensors = list(_tensors(record, ""))
    if len({name for name, _ in tensors}) != len(tensors):
        raise DamagedFileError("An EDM pickle holds a parameter twice.")
    return EDMFile(network, image_shape, classes, dict(tensors))


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
            why=f"it holds {class_name}, expected one of {', '.join(PRECONDITIONINGS)}",
        )
    preconditioning = PRECONDITIONINGS[class_name]
    values = {**dict(zip(("img_resolution", "img_channels", "label_dim"), arguments, strict=False)), **options}
    usual = "DhariwalUNet" if preconditioning in ("edm", "iddpm") else "SongUNet"
    architecture = ARCHITECTURES.get(values.pop("model_type", usual))
    if architecture is None or len(arguments) > 3:
        raise DamagedFileError("An EDM pickle holds an architecture that is not known here.", why=str(options))
    try:
        resolution, channels = int(values.pop("img_resolution")), int(values.pop("img_channels"))
    except KeyError as e:
        raise DamagedFileError("An EDM pickle does not say how large its images are.", why=f"no {e}") from None
    classes = int(values.pop("label_dim", 0))
    return _network(architecture, preconditioning, values), (channels, resolution, resolution), classes


def _network(architecture: str, preconditioning: str, arguments: dict[str, Any]) -> Network:
    for name, value in FIXED.items():
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
        raise DamagedFileError("An EDM pickle has settings that are not known here.", why=", ".join(sorted(values)))
    try:
        return Network.model_validate(settings)
    except ValueError as e:
        raise DamagedFileError("An EDM pickle describes an impossible network.", why=str(e)) from None


def _plain(value: Any) -> Any:
    return value.state if isinstance(value, _Stub) else value


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers below a module by EDM's names, without the constants."""
    state = _plain(module) if isinstance(module, _Stub) else module.state
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor) and name not in CONSTANT_BUFFERS:
                yield f"{prefix}{name}", value.float()
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, _Record | _Stub):
            yield from _tensors(child, f"{prefix}{name}.")
