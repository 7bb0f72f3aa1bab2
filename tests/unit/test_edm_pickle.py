"""EDM's pickles are read exactly, and never run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edm_files import Record, edm_pickle, record_of
from safetensors import safe_open
from tiny import network

from msd.errors import ConfigError, DamagedFileError, MissingFileError, MsdError, UnsafeFileError
from msd.networks import load_network
from msd.networks.convert import convert
from msd.networks.precond import Preconditioned
from msd.store import read_json, sha256_file


def arguments(net: Preconditioned) -> dict[str, Any]:
    """EDM's init arguments of a network without folding."""
    settings = net.description["network"]
    return {
        "img_resolution": net.image_shape[1],
        "img_channels": net.image_shape[0],
        "label_dim": net.num_conditions,
        "model_type": "DhariwalUNet",
        "model_channels": settings["model_channels"],
        "channel_mult": settings["channel_mult"],
        "num_blocks": settings["num_blocks"],
        "attn_resolutions": [],
        "dropout": 0.0,
        "use_fp16": False,
        "sigma_max": np.float64(80.0),  # numpy scalars occur in real files
    }


@pytest.fixture(scope="module")
def net() -> Preconditioned:
    return network(3, pixel_unshuffle=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "net.pkl"
        path.write_bytes(content)
        return path

    return write


Write = Callable[[bytes], Path]


def test_pickle_gives_the_network(net: Preconditioned, write: Write) -> None:
    loss = Record("EDMLoss", {"P_mean": -1.2})
    path = write(edm_pickle(record_of(net, "EDMPrecond", **arguments(net)), loss_fn=loss, dataset_kwargs={"a": 1}))
    read = load_network(path)
    assert read.num_parameters == net.num_parameters
    for name, tensor in net.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)


NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
    "channel_mult_noise": 2,
}
SONG = {"embedding": "fourier", "encoder": "residual", "taps": [1, 3, 3, 1], "noise_channel_mult": 2}


@pytest.mark.parametrize(
    ("class_name", "changes", "further"),
    [
        ("VPPrecond", {"preconditioning": "vp", "architecture": "song"}, {"beta_d": 19.9}),
        ("VEPrecond", {"preconditioning": "ve", "architecture": "song", "song": SONG}, {**NCSNPP, "sigma_max": 100}),
        ("iDDPMPrecond", {"preconditioning": "iddpm"}, {"C_2": 0.008}),
        ("EDMPrecond", {"architecture": "song", "augment_dim": 9}, {"augment_dim": 9}),
    ],
)
def test_pickles_of_every_kind(class_name: str, changes: dict[str, Any], further: dict[str, Any], write: Write) -> None:
    made = network(3, pixel_unshuffle=1, **changes)
    model_type = "SongUNet" if "architecture" in changes else "DhariwalUNet"
    record = record_of(made, class_name, **{**arguments(made), "sigma_max": 80, "model_type": model_type, **further})
    if class_name == "iDDPMPrecond":
        record.meta["state"]["_buffers"]["u"] = torch.zeros(1001)
    read = load_network(write(edm_pickle(record)))
    x, cond = torch.randn(2, *made.image_shape, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    assert torch.equal(read(x, torch.tensor(2.0), cond), made(x, torch.tensor(2.0), cond))


def test_memory_of_the_readers_own_is_not_for_the_asking(write: Write) -> None:
    with pytest.raises(UnsafeFileError, match="memory"):
        load_network(write(b"\x80\x02]r\xff\xff\xff\xff."))


def test_conversion_is_exact_and_says_where_it_came_from(net: Preconditioned, write: Write, tmp_path: Path) -> None:
    path, out = write(edm_pickle(record_of(net, "EDMPrecond", **arguments(net)))), tmp_path / "out.safetensors"
    convert(path, out)
    origin = read_json(out.with_suffix(".json"))
    assert origin["weights"]["sha256"] == sha256_file(out)
    assert origin["converted_from"]["sha256"] == sha256_file(path)
    assert origin["parameters"] == net.num_parameters
    with safe_open(out, framework="pt") as f:
        assert {name: f.get_tensor(name).shape for name in f.keys()} == {  # noqa: SIM118
            name: tensor.shape for name, tensor in net.state_dict().items()
        }
    again = load_network(out)
    assert all(torch.equal(again.state_dict()[name], t) for name, t in net.state_dict().items())


@pytest.mark.parametrize("out", ["net.pkl", "other.pkl", "net.json", "folder.safetensors"])
def test_conversion_overwrites_nothing_else(out: str, net: Preconditioned, write: Write, tmp_path: Path) -> None:
    path = write(good_bytes(net))
    (tmp_path / "folder.safetensors").mkdir()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another than the source"):
        convert(path, tmp_path / out)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "net.pkl"]


class Call:
    """Pickled as a call of ``function``, as malicious files do."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def inner(value: Any, new: bool = False) -> Call:
    """A tensor whose inner storage pickle is ``value``'s."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


def storage_call(*sizes: Any) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, inner(torch.zeros(4)._typed_storage()), *sizes, False, {})


class Rebuilt:
    """A tensor that is then given other sizes, by the instruction that sets an object's state."""

    def __reduce__(self) -> Any:
        storage = torch.zeros(4)._typed_storage()
        arguments = (inner(storage), 0, (4,), (1,), False, {})
        return torch._utils._rebuild_tensor_v2, arguments, (inner(storage), 0, (1000,), (1,))


def storage_pickle(storage: Any) -> Call:
    return inner(storage)


def inner_of(content: bytes) -> Call:
    return Call(torch.storage._load_from_bytes, content)


SHARED = inner(torch.zeros(1000)._typed_storage()).reduced[1][0]

MALICIOUS: dict[str, tuple[Callable[[str], Any], type[MsdError], str]] = {
    "os.system": (lambda f: Call(os.system, f"touch {f}"), UnsafeFileError, f"{os.system.__module__}.system"),
    "eval": (lambda f: Call(builtins.eval, f"open({f!r}, 'w')"), UnsafeFileError, "builtins.eval"),
    "getattr": (lambda f: Call(getattr, "os", "system"), UnsafeFileError, "builtins.getattr"),
    "subprocess": (lambda f: Call(subprocess.Popen, ["touch", f]), UnsafeFileError, "subprocess.Popen"),
    "torch.load": (lambda f: Call(torch.load, f), UnsafeFileError, "torch"),
    "numpy load": (lambda f: Call(np.load, f), UnsafeFileError, "numpy"),
    "inner pickle": (lambda f: inner(Call(os.system, f"touch {f}")), UnsafeFileError, "inner pickle"),
    "inner eval": (lambda f: inner({"a": Call(builtins.eval, f"open({f!r}, 'w')")}), UnsafeFileError, "inner pickle"),
    "not a storage": (lambda f: inner({"a": 1}), DamagedFileError, "no typed storage"),
    "too large": (lambda f: storage_call(0, (5,), (1,)), DamagedFileError, "beyond its storage"),
    "huge": (lambda f: storage_call(0, (2**40,), (0,)), DamagedFileError, "beyond its storage"),
    "negative": (lambda f: storage_call(-1, (4,), (1,)), DamagedFileError, "impossible sizes"),
    "negative stride": (lambda f: storage_call(3, (4,), (-1,)), DamagedFileError, "impossible sizes"),
    "offset": (lambda f: storage_call(2, (3,), (1,)), DamagedFileError, "beyond its storage"),
    "unequal": (lambda f: storage_call(0, (2, 2), (1,)), DamagedFileError, "impossible sizes"),
    "no number": (lambda f: storage_call(0, ("4",), (1,)), DamagedFileError, "impossible sizes"),
    "changed tensor": (lambda f: Rebuilt(), UnsafeFileError, "changes a tensor"),
    "zip in a tensor": (lambda f: inner(torch.zeros(4), new=True), DamagedFileError, "another form"),
    "the same again": (lambda f: [inner_of(SHARED) for _ in range(500)], UnsafeFileError, "again and again"),
    "object dtype": (lambda f: Call(np.dtype, "O8", False, True), DamagedFileError, "number type"),
}


@pytest.mark.parametrize("case", MALICIOUS)
@pytest.mark.parametrize("place", ["ema", "beside", "nested"])
def test_malicious_pickles_are_refused_and_not_run(
    case: str, place: str, net: Preconditioned, write: Write, tmp_path: Path
) -> None:
    make, error, words = MALICIOUS[case]
    trace = tmp_path / "trace"
    evil, good = make(str(trace)), record_of(net, "EDMPrecond", **arguments(net))
    if place == "ema":
        content = edm_pickle(evil)
    elif place == "beside":
        content = edm_pickle(good, augment_pipe=evil)
    else:
        good.meta["state"]["_modules"]["model"].meta["state"]["_parameters"]["extra"] = evil
        content = edm_pickle(good)
    with pytest.raises(error, match=words.replace(".", r"\.")) as refused:
        load_network(write(content))
    assert refused.value.where == str(tmp_path / "net.pkl")
    assert "False" not in str(refused.value)  # torch would suggest to load it all the same
    assert not trace.exists()
    with pytest.raises(error):
        convert(tmp_path / "net.pkl", tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


def test_attributes_of_known_names_cannot_be_changed(net: Preconditioned, write: Write) -> None:
    """A BUILD instruction on a function, and on a class that another file would then meet."""
    for module, name in (("torch._utils", "_rebuild_parameter"), ("torch.nn.modules.container", "ModuleDict")):
        build = (
            b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}X\x0a\x00\x00\x00__module__xX\x01\x00\x00\x00as\x86b."
        )
        with pytest.raises(MsdError):
            load_network(write(build))
    path = write(edm_pickle(record_of(net, "EDMPrecond", **arguments(net))))
    assert load_network(path).num_parameters == net.num_parameters


def good_bytes(net: Preconditioned) -> bytes:
    return edm_pickle(record_of(net, "EDMPrecond", **arguments(net)))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_pickle(share: float, net: Preconditioned, write: Write) -> None:
    content = good_bytes(net)
    with pytest.raises(DamagedFileError, match=r"net\.pkl"):
        load_network(write(content[: int(share * len(content))]))


@pytest.mark.parametrize(
    ("class_name", "change", "words"),
    [
        ("StyleGAN", {}, "StyleGAN"),
        ("EDMPrecond", {"model_type": "UViT"}, "UViT"),
        ("EDMPrecond", {"sigma_data": 1.0}, "sigma_data"),
        ("EDMPrecond", {"wings": 2}, "wings"),
        ("EDMPrecond", {"model_channels": 64}, "do not fit"),
        ("EDMPrecond", {"model_channels": "many"}, "impossible network"),
    ],
)
def test_other_architectures_are_refused(
    class_name: str, change: dict[str, Any], words: str, net: Preconditioned, write: Write
) -> None:
    with pytest.raises(DamagedFileError, match=words):
        load_network(write(edm_pickle(record_of(net, class_name, **{**arguments(net), **change}))))


def test_no_pickle_and_no_file(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        load_network(write(b"GIF89a"))
    for other in ({"G": 1}, [1], {"ema": 3}):
        with pytest.raises(DamagedFileError, match="under `ema`"):
            load_network(write(pickle.dumps(other)))
    with pytest.raises(MissingFileError):
        load_network(tmp_path / "nowhere.pkl")


def test_reading_imports_nothing_of_edm(net: Preconditioned, write: Write) -> None:
    load_network(write(good_bytes(net)))
    assert not any(name.startswith(("torch_utils", "dnnlib")) for name in sys.modules)
