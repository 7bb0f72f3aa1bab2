"""DMD2's checkpoints come in exactly, as tensors; anything else is refused, and nothing in a file is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, IMAGE_SHAPE, network

from msd.config import Network
from msd.errors import DamagedFileError, MissingFileError, UnsafeFileError
from msd.networks import load_network, save_network
from msd.networks.dmd2_checkpoint import load_dmd2_student, read_dmd2_checkpoint
from msd.networks.files import build_network
from msd.networks.published import published_network
from msd.registry import KNOWN

ARCHITECTURE = Network(model_channels=8, channel_mult=[1, 2], num_blocks=1)
GENERATOR = network(5, pixel_unshuffle=1)


def state_dict(prefix: str = "") -> OrderedDict[str, torch.Tensor]:
    """The generator as DMD2 writes it: EDM's names, and its constant filters where the size changes."""
    state = OrderedDict((f"{prefix}{n}", t) for n, t in GENERATOR.state_dict().items())
    for name in list(state):
        if "_down.conv0.weight" in name or "_up.conv0.weight" in name:
            state[name.replace("weight", "resample_filter")] = torch.full((1, 1, 2, 2), 0.25)
    assert any("resample_filter" in name for name in state)
    return state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state_dict(), path)
    return path


def load(path: Path, **changes: Any) -> torch.nn.Module:
    settings = {"network": ARCHITECTURE, "image_shape": IMAGE_SHAPE, "num_conditions": CLASSES} | changes
    return load_dmd2_student(path, **settings)


@pytest.mark.parametrize("prefix", ["", "module.", "feedforward_model."])
def test_generator_comes_in_exactly(prefix: str, path: Path) -> None:
    torch.save(state_dict(prefix), path)
    net = load(path)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    noise = torch.randn(3, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
    cond = torch.arange(3)
    assert torch.equal(net.generate(noise, cond), GENERATOR.generate(noise, cond))


def test_conversion_keeps_every_bit(path: Path, tmp_path: Path) -> None:
    save_network(load(path), tmp_path / "student.safetensors")
    converted = load_network(tmp_path / "student.safetensors").state_dict()
    assert converted.keys() == GENERATOR.state_dict().keys()
    assert all(torch.equal(converted[name], t) for name, t in GENERATOR.state_dict().items())


def test_tensors_are_float32_without_constants(path: Path) -> None:
    torch.save({name: t.bfloat16() for name, t in state_dict().items()}, path)
    tensors = read_dmd2_checkpoint(path)
    assert tensors.keys() == GENERATOR.state_dict().keys()
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_released_students_have_the_architecture_of_their_teacher() -> None:
    architecture, image_shape, classes = published_network(KNOWN["edm-imagenet-64x64-cond-adm"])
    with torch.device("meta"):
        net = build_network(architecture, image_shape=image_shape, num_conditions=classes, seed=0)
    assert round(net.num_parameters / 1e6, 1) == 295.9
    assert net.features_shape == (768, 8)  # what DMD2's discriminator is built on


class Command:
    """What a pickle of an attacker runs when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickle_that_runs_something_is_refused(save: Callable[[Any, Path], object], path: Path, tmp_path: Path) -> None:
    save({**state_dict(), "extra": Command(tmp_path / "trace")}, path)
    with pytest.raises(UnsafeFileError) as unsafe:
        read_dmd2_checkpoint(path)
    assert unsafe.value.where == str(path)
    assert not (tmp_path / "trace").exists()


def test_what_an_unsafe_file_asks_for_is_named(path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(UnsafeFileError) as unsafe:
        read_dmd2_checkpoint(path)
    assert "torch.nn.modules.linear.Linear" in unsafe.value.why


def spoil_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_text(path: Path) -> None:
    path.write_text("not a checkpoint " * 100)


def spoil_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def spoil_list(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def spoil_nested(path: Path) -> None:
    torch.save({"state_dict": dict(state_dict()), "step": 3}, path)


def spoil_of_the_guidance(path: Path) -> None:
    torch.save(state_dict("real_unet.") | state_dict("fake_unet."), path)


def spoil_of_something_else(path: Path) -> None:
    torch.save({"conv_in.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_truncated,
        spoil_flipped,
        spoil_empty,
        spoil_text,
        spoil_other_zip,
        spoil_list,
        spoil_nested,
        spoil_of_the_guidance,
        spoil_of_something_else,
    ],
)
def test_spoilt_file_is_one_clear_error(spoil: Callable[[Path], None], path: Path) -> None:
    spoil(path)
    with pytest.raises(DamagedFileError) as damaged:
        read_dmd2_checkpoint(path)
    assert damaged.value.where == str(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_dmd2_checkpoint(tmp_path / "nowhere.bin")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_conditions": CLASSES + 1}, "1 of another shape: model.map_label.weight (32, 4) for (32, 5)"),
        ({"network": ARCHITECTURE.model_copy(update={"num_blocks": 2})}, "missing: model.enc."),
        ({"network": ARCHITECTURE.model_copy(update={"channel_mult": [1]})}, "unexpected: model.enc."),
    ],
)
def test_other_architecture_is_told_by_the_first_names(changes: dict[str, Any], told: str, path: Path) -> None:
    with pytest.raises(DamagedFileError) as damaged:
        load(path, **changes)
    assert told in damaged.value.why
    assert len(damaged.value.why) < 600
