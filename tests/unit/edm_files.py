"""Pickles in EDM's format, made from our own networks with stand-ins for the classes that wrote the real ones."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CONTAINERS = {nn.ModuleDict: "ModuleDict"}


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("the reader must not call this")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def _edm_modules() -> Iterator[None]:
    """Names that pickle looks up when it writes a reference."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    sys.modules.update({"torch_utils": package, "torch_utils.persistence": module})
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


class Record:
    """Pickled as EDM's persistence record."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('never run')",
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


def record_of(module: nn.Module, class_name: str, **init_kwargs: Any) -> Record:
    """A module and all below it as records, with EDM's constant filter buffers where it has them."""
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict((n, b) for n, b in module._buffers.items() if n in module.state_dict()),
        "_modules": OrderedDict(),
        "_init_args": (),
        "_init_kwargs": init_kwargs,
    }
    for name, child in module.named_children():
        if list(child.parameters()) or list(child.buffers()):
            state["_modules"][name] = record_of(child, type(child).__name__)
    if type(module).__name__ == "ResampleConv":
        state["_buffers"]["resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    return Record(class_name, state)


def edm_pickle(ema: Any, **other: Any) -> bytes:
    """The bytes of ``{"ema": ema, …}``."""
    with _edm_modules():
        return pickle.dumps({"ema": ema, **other}, protocol=4)
