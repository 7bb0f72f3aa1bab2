"""The measurements: real images score well, noise belongs to the image, and each image comes from its class's owner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, IMAGE_SHAPE, ROOT, network

from msd.bundle.bundle import Bundle
from msd.data.archive import LabelledImages, open_half
from msd.errors import ConfigError, DamagedFileError
from msd.evaluate.classifier import Classifier, accuracy, asked_class_share, load_classifier, save_classifier
from msd.evaluate.confusion import likely_others
from msd.evaluate.metrics import distances
from msd.evaluate.sampling import conditions_of_images, sample
from msd.networks import Preconditioned, save_network
from msd.store import Manifest

FEATURES = ROOT / "resources" / "metrics" / "digits-features.safetensors"
JUDGE = ROOT / "resources" / "metrics" / "digits-judge.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def real(digits: Manifest) -> LabelledImages:
    return open_half(digits, "evaluation")


@pytest.fixture(scope="module")
def train(digits: Manifest) -> LabelledImages:
    return open_half(digits, "train")


def constant_network(seed: int, level: float) -> Preconditioned:
    """A student that draws images of one constant level, by zero weights and a bias."""
    net = network(seed)
    with torch.no_grad():
        net.model.out_conv.weight.zero_()
        # x0 = c_skip x + c_out F with σ = 80, where c_skip is nearly nothing and c_out nearly σ_data
        net.model.out_conv.bias.fill_(level / net.sigma_data)
    return net


def write_bundle(folder: Path, parts: list[list[int]], students: list[Preconditioned]) -> Path:
    """A bundle as `msd bundle` leaves it."""
    files = {}
    for k, net in enumerate(students):
        files[f"student-{k}"] = folder / f"student-{k}.safetensors"
        save_network(net, files[f"student-{k}"])
    Manifest.write(
        folder / "manifest.json",
        kind="bundle",
        settings={"variant": "test", "model": "students"},
        files=files,
        results={"students": len(students), "nfe": 1, "parts": parts},
    )
    return folder


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Student 0 owns classes 0 and 2 and draws −0.5, student 1 owns 1 and 3 and draws 0.5."""
    students = [constant_network(k, level) for k, level in enumerate((-0.5, 0.5))]
    return Bundle(write_bundle(tmp_path_factory.mktemp("bundle"), [[0, 2], [1, 3]], students))


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


def test_every_image_comes_from_the_owner_of_its_class(constant: Bundle) -> None:
    cond = torch.tensor([3, 0, 2, 1, 1, 0])
    images = constant.generate(noise(6), cond)
    assert images.mean(dim=(1, 2, 3)).sign().tolist() == [1, -1, -1, 1, 1, -1]
    assert (images.abs() - 0.5).abs().max() < 0.05


def test_order_in_the_batch_does_not_matter(constant: Bundle) -> None:
    z, cond, order = noise(4), torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 3, 1])
    assert torch.equal(constant.generate(z, cond)[order], constant.generate(z[order], cond[order]))


@pytest.mark.parametrize("cond", [CLASSES, -1])
def test_class_that_does_not_exist(constant: Bundle, cond: int) -> None:
    with pytest.raises(ConfigError, match=f"There is no class {cond}"):
        constant.generate(noise(1), torch.tensor([cond]))


def test_bundle_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, [[0, 2], [1, 3]], [network(0), network(1)])
    student = folder / "student-1.safetensors"
    content = bytearray(student.read_bytes())
    content[-1] ^= 1
    student.write_bytes(content)
    with pytest.raises(DamagedFileError) as damaged:
        Bundle(folder)
    assert damaged.value.where == str(student)


def test_images_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    bundle = Bundle(write_bundle(tmp_path, [[0, 2], [1, 3]], [network(0), network(1)]))
    drawn = [sample(bundle, 12, size, 5, CPU, lambda *_: None).astype(int) for size in (12, 5, 1)]
    assert drawn[0].shape == (12, *IMAGE_SHAPE)
    assert len({image.tobytes() for image in drawn[0]}) == 12
    for other in drawn[1:]:
        assert np.abs(drawn[0] - other).max() <= 1  # another batch size may round a value otherwise
    assert np.abs(drawn[0] - sample(bundle, 12, 12, 6, CPU, lambda *_: None)).max() > 1


def test_conditions_are_balanced() -> None:
    cond = torch.cat([conditions_of_images(first, 25, 10) for first in range(0, 100, 25)])
    assert torch.bincount(cond).tolist() == [10] * 10
    assert torch.equal(cond, conditions_of_images(0, 100, 10))


def test_real_images_show_what_they_are(real: LabelledImages) -> None:
    judge, images = load_classifier(JUDGE), np.array(real.images)
    share, per_class = asked_class_share(images, real.labels, judge)
    assert share > 0.95
    assert len(per_class) == 10
    assert min(per_class) > 0.9
    assert np.mean(per_class) == pytest.approx(share)
    assert asked_class_share(images, (real.labels + 1) % 10, judge)[0] < 0.05
    assert accuracy(judge, real) == pytest.approx(share)


def test_the_judge_says_which_classes_are_alike(real: LabelledImages) -> None:
    judge = load_classifier(JUDGE)
    others = likely_others(real.images, real.labels, judge)
    assert [sorted(c for c, _ in row) for row in others] == [[c for c in range(10) if c != own] for own in range(10)]
    assert all(row == sorted(row, key=lambda pair: -pair[1]) for row in others)
    assert {others[4][0][0], others[9][0][0]} & {4, 9}  # the best-known pair
    with torch.no_grad():
        shares = judge.of_uint8(torch.from_numpy(np.array(real.images[real.labels == 4])))[1].softmax(1).mean(0)
    assert dict(others[4])[9] == pytest.approx(float(shares[9]), abs=1e-5)


def test_real_images_are_close_to_real_images(real: LabelledImages, train: LabelledImages) -> None:
    found = distances(train.images, real.images, FEATURES, 3, "fd_digits")
    assert 0 < found["fd_digits"] < 5
    assert found["precision"] > 0.8
    assert found["recall"] > 0.8


def test_a_set_is_at_no_distance_from_itself(real: LabelledImages) -> None:
    found = distances(real.images, real.images, FEATURES, 3, "fd_digits")
    assert abs(found["fd_digits"]) < 1e-3
    assert found["precision"] == found["recall"] == 1


def test_what_is_missing_costs_recall_and_what_is_wrong_costs_precision(real: LabelledImages) -> None:
    ones = real.images[real.labels == 1]
    few_classes = distances(ones, real.images, FEATURES, 3, "fd_digits")
    assert few_classes["precision"] > 0.9
    assert few_classes["recall"] < 0.3
    inverted = distances(255 - real.images[:500], real.images, FEATURES, 3, "fd_digits")
    assert inverted["precision"] < 0.1
    assert inverted["fd_digits"] > few_classes["fd_digits"] / 10 > 1


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # some features are always zero
def test_distance_is_the_gaussians(real: LabelledImages, train: LabelledImages) -> None:
    """The library's number against the formula: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 √(Σ₁ Σ₂))."""
    from scipy.linalg import sqrtm

    net = load_classifier(FEATURES)
    with torch.no_grad():
        a, b = (net.of_uint8(torch.from_numpy(h.images[:1000].copy()))[0].double().numpy() for h in (train, real))
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    found = distances(train.images[:1000], real.images[:1000], FEATURES, 3, "fd_digits")["fd_digits"]
    assert found == pytest.approx(expected, rel=1e-3)


def test_classifier_file_round_trip_and_damage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = Classifier((1, 8, 8), 3, 2, 4), tmp_path / "net.safetensors"
    save_classifier(net, path)
    x = torch.randn(2, 1, 8, 8)
    for before, after in zip(net(x), load_classifier(path)(x), strict=True):
        assert torch.equal(before, after)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedFileError):
        load_classifier(path)
