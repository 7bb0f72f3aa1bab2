"""LPIPS as the metric of the regression loss: torch-fidelity's network, with random weights, so nothing is fetched."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import REGRESSION, dm_step, draws_of, pairs
from torch import Tensor
from torch_fidelity.sample_similarity_lpips import URL_VGG16_LPIPS, SampleSimilarityLPIPS
from torchvision.models import VGG16_Weights, vgg16

from msd import download
from msd.config.recipe import Regression
from msd.distill import perceptual
from msd.distill.losses import regression_loss
from msd.distill.perceptual import Lpips
from msd.distill.run import _metric
from msd.errors import DownloadError

CHANNELS = (64, 128, 256, 512, 512)  # of the five layers that are compared
SMALL = 32  # pixels, instead of 224: a test's time
CPU = torch.device("cpu")


def normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(seed: int, count: int = 2, channels: int = 3) -> Tensor:
    """uint8 images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 24, 24), generator=generator, dtype=torch.uint8)


def signed(x: Tensor) -> Tensor:
    """uint8 → [-1, 1]."""
    return x.float() / 127.5 - 1


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files under the names that they are downloaded as. VGG16's own classifier, unused, is one zero each."""
    folder = tmp_path_factory.mktemp("mirror") / "checkpoints"
    folder.mkdir()
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in vgg16(weights=None).state_dict().items()}
    vgg = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    for i, (name, shape) in enumerate(shapes.items()):
        if name.startswith("features."):
            scale = (2 / shape[1:].numel()) ** 0.5 if name.endswith("weight") else 0.02
            vgg[name] = scale * normal(i, shape)
    torch.save(vgg, folder / Path(VGG16_Weights.IMAGENET1K_V1.url).name)
    linear = {f"lin{i}.model.1.weight": normal(100 + i, (1, c, 1, 1)).abs() for i, c in enumerate(CHANNELS)}
    torch.save(linear, folder / Path(URL_VGG16_LPIPS).name)
    assert sorted(p.name for p in folder.iterdir()) == ["vgg16-397923af.pth", "weights-vgg16-lpips.pth"]
    return folder


@pytest.fixture
def _mirrored(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSD_MIRROR", str(mirror))
    monkeypatch.setenv("MSD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lpips(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSD_MIRROR", str(mirror))
        patch.setenv("MSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(perceptual, "RESIZE", SMALL)
        return Lpips()


def direct(mirror: Path, x: Tensor, y: Tensor, size: int) -> Tensor:
    """torch-fidelity's own distances of uint8 RGB images."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(mirror.parent)
    try:
        return SampleSimilarityLPIPS("lpips", sample_similarity_resize=size)(x, y).flatten()
    finally:
        torch.hub.set_dir(before)


@pytest.mark.usefixtures("_mirrored")
def test_distance_is_torch_fidelitys_at_224_pixels(mirror: Path) -> None:
    x, y = images(0, 1), images(1, 1)
    expected = direct(mirror, x, y, 224)
    found = Lpips()(signed(x), signed(y))
    assert found.shape == (1,)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert not torch.allclose(direct(mirror, x, y, SMALL), expected, rtol=1e-2)


def test_distances_are_those_of_each_pair_and_the_loss_their_mean(lpips: Lpips, mirror: Path) -> None:
    x, y = images(0), images(1)
    expected = direct(mirror, x, y, SMALL)
    assert torch.allclose(lpips(signed(x), signed(y)), expected, rtol=1e-4)
    assert float(expected.min()) > 0.01
    assert regression_loss(signed(x), signed(y), lpips).item() == pytest.approx(float(expected.mean()), rel=1e-4)


def test_images_are_at_no_distance_from_themselves(lpips: Lpips) -> None:
    x = signed(images(0))
    assert lpips(x, x.clone()).tolist() == [0, 0]
    assert regression_loss(x, x.clone(), lpips) == 0


def test_gradient_reaches_the_students_images_only(lpips: Lpips) -> None:
    x, y = signed(images(0)).requires_grad_(True), signed(images(1)).requires_grad_(True)
    regression_loss(x, y, lpips).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(image.any() for image in x.grad)
    assert y.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in lpips.parameters())
    with torch.no_grad():  # and it leads downhill
        nearer = x - 0.1 * x.grad / x.grad.abs().max()
        assert regression_loss(nearer, y, lpips) < regression_loss(x, y, lpips)


def test_gradient_is_finite_where_a_layer_sees_nothing(lpips: Lpips) -> None:
    """The root of a sum of squares has no derivative at zero."""
    blind = copy.deepcopy(lpips)
    with torch.no_grad():
        blind.net.net.slice3[-2].bias.fill_(-1e6)
    x = signed(images(0)).requires_grad_(True)
    blind(x, signed(images(1))).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_grey_images_are_compared_as_rgb(lpips: Lpips) -> None:
    x, y = (signed(images(seed, channels=1)) for seed in (2, 3))
    found = lpips(x.requires_grad_(True), y)
    assert torch.allclose(found, lpips(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)), rtol=1e-5)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_dm_regresses_by_it(lpips: Lpips) -> None:
    """The metric that the stage makes is the one that the step uses; the network is no part of the step's state."""
    settings = REGRESSION | {"metric": "lpips"}
    step = dm_step(regression=False)
    step.settings = step.settings.model_copy(update={"regression": Regression.model_validate(settings)})
    step.pairs, step.metric = pairs(), lpips
    plain, weighted = step._regression(draws_of(step))
    chosen = draws_of(step).sized(settings["batch_size"]).integers("pairs", 0, settings["pairs"])
    x = step.student.generate(step.pairs.noise[chosen], step.pairs.cond[chosen])
    assert plain.item() == pytest.approx(lpips(x, step.pairs.images[chosen]).mean().item(), rel=1e-4)
    assert weighted.item() == pytest.approx(0.5 * plain.item())
    weighted.backward()
    assert all(p.grad is not None and p.grad.any() for p in step.student.model.out_conv.parameters())
    assert step.networks().keys() == {"student", "fake_score"}
    step.metric = None
    with pytest.raises(ValueError, match="no metric 'lpips'"):
        step._regression(draws_of(step))


@pytest.mark.usefixtures("_mirrored")
def test_stage_makes_the_network_only_where_it_is_asked_for() -> None:
    assert isinstance(_metric("lpips", CPU), Lpips)
    assert _metric("huber", CPU) is None
    assert _metric("l2", CPU) is None


@pytest.mark.usefixtures("_mirrored")
def test_torchs_own_folder_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.hub.get_dir()

    def fail(*_: Any, **__: Any) -> None:
        assert torch.hub.get_dir() != before
        raise RuntimeError("broken weights")

    monkeypatch.setattr(perceptual, "SampleSimilarityLPIPS", fail)
    with pytest.raises(RuntimeError, match="broken weights"):
        Lpips()
    assert torch.hub.get_dir() == before


def test_without_network_and_mirror_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound but not listening: nobody answers there
        closed.bind(("127.0.0.1", 0))
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "MSD_MIRROR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MSD_CACHE", str(tmp_path))
        monkeypatch.setattr(download, "PAUSES", ())
        with pytest.raises(DownloadError) as refused:
            Lpips()
    assert refused.value.where == URL_VGG16_LPIPS
    assert "MSD_MIRROR" in refused.value.todo


def test_metrics_are_named_or_functions() -> None:
    x, y = signed(images(0)), signed(images(1))
    with pytest.raises(ValueError, match="no metric 'vgg'"):
        regression_loss(x, y, "vgg")
    with pytest.raises(ValueError, match=r"expected shape \(2,\)"):
        regression_loss(x, y, lambda a, b: (a - b).abs().mean())
    assert regression_loss(x, y, lambda a, b: (a - b).abs().mean((1, 2, 3))) == pytest.approx(
        float((x - y).abs().mean())
    )
    assert Regression.model_validate(REGRESSION | {"metric": "lpips"}).metric == "lpips"
    with pytest.raises(ValidationError, match="metric"):
        Regression.model_validate(REGRESSION | {"metric": "vgg"})
