"""Inception-v3 with the FID weights of 2015 on CIFAR-10: known answers, and three implementations that agree.

The weights come from PyPI by scripts/inception-for-tests. A CPU takes a few images a second, so there are few, and
their features are computed once.
"""

from __future__ import annotations

import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as library
from cleanfid.fid import frechet_distance as cleanfid_distance
from cleanfid.fid import get_folder_features
from fetched import fetched_by
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from msd.config import InceptionSource, TorchScriptSource
from msd.data.images import arrays, image_of
from msd.data.sources import open_source
from msd.errors import DamagedFileError
from msd.evaluate.features import Extractor, open_extractor
from msd.evaluate.frechet import frechet_distance
from msd.evaluate.metrics import statistics_of
from msd.store import sha256_file

COUNT = 48  # images of each set
FULL_RANK = 30  # features, fewer than images
CPU = torch.device("cpu")
pytestmark = pytest.mark.timeout(1800)  # on a machine that is busy with other things
INCEPTION = InceptionSource(source="inception").model_dump(mode="json")


@pytest.fixture(scope="session")
def weights() -> Path:
    return fetched_by("inception-for-tests", "Inception's weights")


@pytest.fixture(scope="session")
def images() -> dict[str, np.ndarray]:
    """The first images of CIFAR-10's halves, (COUNT, 3, 32, 32) uint8."""
    folder = Path(os.environ.get("MSD_TEST_DATA", "")) / "data"
    if not (folder / "cifar10-train.zip").exists():
        pytest.skip("needs MSD_TEST_DATA, a folder with data/cifar10-train.zip and -test.zip in EDM's format")
    halves = {half: open_source("edm-zip", folder / f"cifar10-{half}.zip") for half in ("train", "test")}
    return {half: np.stack(list(islice(arrays(source), COUNT))) for half, source in halves.items()}


@pytest.fixture(scope="session")
def extractor(weights: Path) -> Extractor:
    return open_extractor(weights, INCEPTION, "tensorflow", CPU)


@pytest.fixture(scope="session")
def features(extractor: Extractor, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the original code's resizing, (COUNT, 2048)."""
    return {half: extractor.all_of(np.split(pictures, 4)) for half, pictures in images.items()}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return frechet_distance(statistics_of(one), statistics_of(other))


def test_a_set_is_at_no_distance_from_itself(features: dict[str, np.ndarray]) -> None:
    assert features["train"].shape == (COUNT, 2048)
    assert abs(distance(features["train"], features["train"][::-1])) < 1e-3


def test_cifar10s_test_images_are_as_close_as_its_other_training_images(features: dict[str, np.ndarray]) -> None:
    half = COUNT // 2
    train, test = features["train"], features["test"]
    within, across = distance(train[:half], train[half:]), distance(train[:half], test[:half])
    assert across == pytest.approx(within, rel=0.2)
    # the estimate's bias falls as images are added
    assert 0 < distance(train, test) < across


def test_three_implementations_agree(features: dict[str, np.ndarray]) -> None:
    for width, rel in ((FULL_RANK, 1e-6), (2048, 1e-4)):
        # the library's own way carries rounding errors where there are fewer images than features
        one, other = (features[half][:, :width] for half in ("train", "test"))
        ours = distance(one, other)
        theirs = [fid_features_to_statistics(torch.from_numpy(f).double()) for f in (one, other)]
        assert ours == pytest.approx(fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID], rel=rel)
        if width == FULL_RANK:
            a, b = (statistics_of(f) for f in (one, other))
            assert ours == pytest.approx(cleanfid_distance(a.mu, a.sigma, b.mu, b.sigma), rel=rel)


def test_clean_resizing_is_clean_fids(
    weights: Path, images: dict[str, np.ndarray], features: dict[str, np.ndarray], tmp_path: Path
) -> None:
    few = images["test"][:8]
    for i, image in enumerate(few):
        image_of(image).save(tmp_path / f"{i:03d}.png")
    layers = torch.jit.load(str(weights)).eval().net.layers
    theirs = get_folder_features(
        str(tmp_path),
        model=lambda x: layers((x - 128) / 128).flatten(1),
        num_workers=0,
        batch_size=8,
        device=CPU,
        mode="clean",
        verbose=False,
    )
    ours = open_extractor(weights, INCEPTION, "clean", CPU).all_of([few])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(ours - features["test"][:8]).max() > 0.01  # the filter matters


@pytest.fixture
def random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the official format."""
    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        torch.manual_seed(0)
        net = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


def test_official_file_gives_torch_fidelitys_features(random_weights: Path) -> None:
    colour, grey = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 32, 32), dtype=np.uint8)
    grey = grey[:, :1]
    pictures = np.concatenate([colour, grey.repeat(3, axis=1)])
    theirs = library.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(random_weights)
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pictures))[0].numpy()
    ours = open_extractor(random_weights, INCEPTION, "tensorflow", CPU)
    np.testing.assert_allclose(ours.all_of([colour, grey]), expected, rtol=1e-5, atol=1e-6)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", ["code", "other tensors", "no dictionary", "text"])
def test_other_files_are_refused_and_run_nothing(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if content == "code":
        path.write_bytes(pickle.dumps(Harmful()))
    elif content == "text":
        path.write_text("text")
    else:
        torch.save({"a": torch.zeros(2)} if content == "other tensors" else [torch.zeros(2)], path)
    with pytest.raises(DamagedFileError) as refused:
        open_extractor(path, INCEPTION, "tensorflow", CPU)
    assert refused.value.where == str(path)
    assert not (tmp_path / "harm").exists()


def test_a_torchscript_file_is_a_feature_space(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    path = tmp_path / "pool.pt"
    torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save(str(path))
    source = TorchScriptSource(
        source="torchscript", path=str(path), sha256=sha256_file(path), size=8, mean=(0.5, 0, 0), std=(0.5, 1, 1)
    )
    pictures = np.full((2, 3, 8, 8), 255, np.uint8)
    found = open_extractor(path, source.model_dump(mode="json"), "clean", CPU).all_of([pictures])
    np.testing.assert_allclose(found, np.ones((2, 12)), atol=1e-6)
