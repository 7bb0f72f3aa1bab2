"""EDM's network pickles, read without executing anything that they hold (arXiv 2206.00364's released files).

Such a pickle is ``{"ema": network, …}``, where every module is a *persistence record*: a class name, the source code of
its module, and its state with init arguments and tensors. The reader here gives inert stand-ins for the few names
that a real file uses, tensors among them, never runs the source code, and refuses every other name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msd.config import Network
from msd.errors import DamagedFileError, MissingFileError, UnsafeFileError
from msd.networks.edm_arguments import describe

SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
CONSTANT_BUFFERS = ("resample_filter", "u")  # u: iDDPM's noise levels
MOST_AXES = 8
DISTRUST = "Do not use this file, unless you know its origin and convert it with the code that made it."


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
    content = path.read_bytes()
    try:
        _check_memo(content)
        held = _plain(_Unpickler(content).load())
        return _file(held.get("ema") if isinstance(held, dict) else None)
    except (UnsafeFileError, DamagedFileError) as e:
        raise type(e)(e.what, where=str(path), why=e.why, todo=e.todo) from None
    except Exception as e:  # a damaged pickle can fail in any way; none of them has run foreign code
        raise DamagedFileError(
            "An EDM pickle cannot be read.",
            where=str(path),
            why=type(e).__name__ + (f": {e}"[:200] if isinstance(e, EOFError | pickle.UnpicklingError) else ""),
            todo="Download it again, and check its sha256.",
        ) from None


def _check_memo(content: bytes) -> None:
    """Refuse what makes the reader set aside memory out of proportion: memo places far beyond the number of entries."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content), start=1):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise UnsafeFileError("A pickle asks for memory that it has no use for.", todo=DISTRUST)


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
            raise DamagedFileError("An EDM pickle holds an unknown number type.")
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
        raise UnsafeFileError("A pickle sets an attribute of a function.", todo=DISTRUST)


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


class _Held:
    """A tensor or a storage that no instruction of a pickle can change."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFileError("A pickle changes a tensor that it has made.", todo=DISTRUST)


def _scalar(dtype: Any, data: Any) -> float | int | bool:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise DamagedFileError("An EDM pickle holds a number that is none.")
    (value,) = np.frombuffer(data, dtype="<" + dtype.code)
    return value.item()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    """A view of a storage, refused unless it lies inside."""
    if not (
        isinstance(storage, _Held)
        and isinstance(size, tuple)
        and isinstance(stride, tuple)
        and len(size) == len(stride) <= MOST_AXES
        and all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *size, *stride))
    ):
        raise DamagedFileError("A tensor has impossible sizes.")
    numbers = storage.tensor.numel()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > numbers or (0 not in size and last >= numbers):
        raise DamagedFileError(
            "A tensor reaches beyond its storage.",
            why=f"offset {offset}, size {size}, stride {stride} in {numbers} numbers",
        )
    return _Held(storage.tensor.as_strided(size, stride, offset))


def _parameter(data: Any, *_: Any) -> _Held:
    if not isinstance(data, _Held):
        raise DamagedFileError("A parameter is no tensor.", why=type(data).__name__)
    return data


class _Unpickler(pickle.Unpickler):
    """Knows the names of a network pickle, and no other."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.left = len(content)  # storages cannot hold more than the file
        # a fresh class for each file: a pickle can set attributes of a class that it names
        stub = type("_FileStub", (_Stub,), {"__slots__": ()})
        record = _Function(_Record)
        self.known: dict[tuple[str, str], Any] = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): record,
            ("collections", "OrderedDict"): OrderedDict,
            ("dnnlib.util", "EasyDict"): stub,
            ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
            ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
            ("torch.storage", "_load_from_bytes"): _Function(self._storage),
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
                f"A pickle asks for {module[:80]}.{name[:80]}, which no network file needs. Nothing of it was run.",
                todo=DISTRUST,
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise DamagedFileError("An EDM pickle refers to something outside of itself.")

    def _storage(self, data: Any) -> _Held:
        """The inner pickle of a storage: torch's own restricted reader decodes it, never the plain one."""
        if not isinstance(data, bytes) or data[:2] == b"PK":
            raise DamagedFileError("An EDM pickle has a storage in another form than EDM's files.")
        self.left -= len(data)
        if self.left < 0:
            raise UnsafeFileError("A pickle reads the same storage again and again.", todo=DISTRUST)
        try:
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UnsafeFileError(
                "The inner pickle of a tensor holds more than a tensor; it was not run.", todo=DISTRUST
            ) from None
        if isinstance(storage, torch.UntypedStorage) or not isinstance(storage, torch.storage.TypedStorage):
            raise DamagedFileError("The inner pickle of a tensor holds no typed storage.", why=type(storage).__name__)
        return _Held(torch.empty(0, dtype=storage.dtype).set_(storage))


def _file(record: Any) -> EDMFile:
    if not isinstance(record, _Record):
        raise DamagedFileError("A pickle holds no EDM network under `ema`.", todo="Give the file of an EDM network.")
    state = record.state
    network, image_shape, classes = describe(
        record.class_name, tuple(state.get("_init_args") or ()), _plain(state.get("_init_kwargs") or {})
    )
    tensors = list(_tensors(record, "", set()))
    if len({name for name, _ in tensors}) != len(tensors):
        raise DamagedFileError("An EDM pickle holds a parameter twice.")
    return EDMFile(network, image_shape, classes, dict(tensors))


def _plain(value: Any) -> Any:
    return value.state if isinstance(value, _Stub) else value


def _tensors(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers below a module by EDM's names, without the constants."""
    if id(module) in seen:
        raise DamagedFileError("An EDM pickle holds a module twice.")
    seen.add(id(module))
    for group in ("_parameters", "_buffers"):
        for name, value in (module.state.get(group) or {}).items():
            if isinstance(value, _Held) and name not in CONSTANT_BUFFERS:
                yield f"{prefix}{name}", value.tensor.float()
    for name, child in (module.state.get("_modules") or {}).items():
        if isinstance(child, _Record | _Stub):
            yield from _tensors(child, f"{prefix}{name}.", seen)
