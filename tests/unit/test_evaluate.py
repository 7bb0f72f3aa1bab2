"""The measurements: real images score well, noise belongs to the image, and each image comes from its class's owner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, IMAGE_SHAPE, ROOT, network

from msd.bundle.bundle import Bundle
from msd.config import Protocol, load
from msd.data.archive import LabelledImages
from msd.errors import ConfigError, DamagedFileError
from msd.evaluate.classifier import Classifier, accuracy, load_classifier, save_classifier
from msd.evaluate.confusion import likely_others
from msd.evaluate.metrics import asked_class_share, statistics_of
from msd.evaluate.protocol import Network, Ruler, batches
from msd.evaluate.sampling import conditions_of_images, draw, shown_classes
from msd.networks import Preconditioned, save_network
from msd.store import Manifest, sha256_file

FEATURES = ROOT / "resources" / "metrics" / "digits-features.safetensors"
JUDGE = ROOT / "resources" / "metrics" / "digits-judge.safetensors"
CPU = torch.device("cpu")


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


@pytest.fixture(scope="module")
def ruler() -> Ruler:
    """The protocol of the embedded experiment."""
    protocol = load(ROOT / "params.yaml").evaluation.protocol
    return Ruler(protocol, {protocol.name: Network(FEATURES, "of-no-importance")}, CPU)


def distances(ruler: Ruler, images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """All metrics of images against others."""
    features = {name: extractor.all_of(batches(images)) for name, extractor in ruler.extractors.items()}
    return ruler.scores(features, ruler.of_half(reference, "of-no-importance"))


def shares(images: np.ndarray, asked: np.ndarray) -> tuple[float, list[float]]:
    return asked_class_share(shown_classes(torch.from_numpy(images), load_classifier(JUDGE)), asked, np.arange(10))


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

    def drawn_by(size: int, seed: int = 5) -> np.ndarray:
        parts = [draw(bundle, of_seed(seed), k, min(size, 12 - k), CPU)[0] for k in range(0, 12, size)]
        return torch.cat(parts).numpy().astype(int)

    def of_seed(seed: int) -> Protocol:
        return load(ROOT / "params.yaml", (), [f"evaluation.protocol.seed={seed}"]).evaluation.protocol

    drawn = [drawn_by(size) for size in (12, 5, 1)]
    assert drawn[0].shape == (12, *IMAGE_SHAPE)
    assert len({image.tobytes() for image in drawn[0]}) == 12
    for other in drawn[1:]:
        assert np.abs(drawn[0] - other).max() <= 1  # another batch size may round a value otherwise
    assert np.abs(drawn[0] - drawn_by(12, seed=6)).max() > 1


def test_conditions_are_balanced() -> None:
    cond = torch.cat([conditions_of_images(first, 25, 10) for first in range(0, 100, 25)])
    assert torch.bincount(cond).tolist() == [10] * 10
    assert torch.equal(cond, conditions_of_images(0, 100, 10))


def test_real_images_show_what_they_are(real: LabelledImages) -> None:
    images = np.array(real.images)
    share, per_class = shares(images, real.labels)
    assert share > 0.95
    assert len(per_class) == 10
    assert min(per_class) > 0.9
    assert np.mean(per_class) == pytest.approx(share)
    assert shares(images, (real.labels + 1) % 10)[0] < 0.05
    assert accuracy(load_classifier(JUDGE), real) == pytest.approx(share)


def test_the_judge_says_which_classes_are_alike(real: LabelledImages) -> None:
    judge = load_classifier(JUDGE)
    others = likely_others(real.images, real.labels, judge)
    assert [sorted(c for c, _ in row) for row in others] == [[c for c in range(10) if c != own] for own in range(10)]
    assert all(row == sorted(row, key=lambda pair: -pair[1]) for row in others)
    assert {others[4][0][0], others[9][0][0]} & {4, 9}  # the best-known pair
    with torch.no_grad():
        shares = judge.of_uint8(torch.from_numpy(np.array(real.images[real.labels == 4])))[1].softmax(1).mean(0)
    assert dict(others[4])[9] == pytest.approx(float(shares[9]), abs=1e-5)


def test_real_images_are_close_to_real_images(real: LabelledImages, train: LabelledImages, ruler: Ruler) -> None:
    found = distances(ruler, train.images, real.images)
    assert 0 < found["fd_digits"] < 5
    assert found["precision"] > 0.8
    assert found["recall"] > 0.8


def test_a_set_is_at_no_distance_from_itself(real: LabelledImages, ruler: Ruler) -> None:
    found = distances(ruler, real.images, real.images)
    assert abs(found["fd_digits"]) < 1e-3
    assert found["precision"] == found["recall"] == 1


def test_what_is_missing_costs_recall_and_what_is_wrong_costs_precision(real: LabelledImages, ruler: Ruler) -> None:
    ones = real.images[real.labels == 1]
    few_classes = distances(ruler, ones, real.images)
    assert few_classes["precision"] > 0.9
    assert few_classes["recall"] < 0.3
    inverted = distances(ruler, 255 - real.images[:500], real.images)
    assert inverted["precision"] < 0.1
    assert inverted["fd_digits"] > few_classes["fd_digits"] / 10 > 1


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # some features are always zero
def test_distance_is_the_gaussians(real: LabelledImages, train: LabelledImages, ruler: Ruler) -> None:
    """The library's number against the formula: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 √(Σ₁ Σ₂))."""
    from scipy.linalg import sqrtm

    net = load_classifier(FEATURES)
    with torch.no_grad():
        a, b = (net.of_uint8(torch.from_numpy(h.images[:1000].copy()))[0].double().numpy() for h in (train, real))
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    found = distances(ruler, train.images[:1000], real.images[:1000])["fd_digits"]
    assert found == pytest.approx(expected, rel=1e-6)


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


def test_features_of_real_images_are_kept_by_what_they_depend_on(real: LabelledImages, tmp_path: Path) -> None:
    protocol = load(ROOT / "params.yaml", (), ["evaluation.protocol.neighbour_images=50"]).evaluation.protocol
    kept = Ruler(protocol, {protocol.name: Network(FEATURES, "f" * 64)}, CPU, tmp_path)
    first = kept.of_half(real.images[:200], "a" * 64)["fd_digits"]
    assert first.features is not None
    assert first.features.shape == (50, 64)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = kept.of_half(real.images[200:], "a" * 64)["fd_digits"]  # by the digest it is given, so it looks at none
    assert np.array_equal(first.features, again.features)
    assert np.array_equal(first.statistics.sigma, again.statistics.sigma)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    other = kept.of_half(real.images[200:400], "b" * 64)["fd_digits"]
    assert not np.array_equal(first.statistics.mu, other.statistics.mu)
    whole = Ruler(protocol, {protocol.name: Network(FEATURES, "f" * 64)}, CPU).of_half(real.images[:200], "")
    assert np.allclose(whole["fd_digits"].statistics.sigma, first.statistics.sigma)
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(b"no array")
    with pytest.raises(DamagedFileError, match="Cached features"):
        kept.of_half(real.images[:200], "a" * 64)


def test_published_statistics_stand_in_for_the_distance_alone(
    real: LabelledImages, train: LabelledImages, tmp_path: Path
) -> None:
    extractor = Ruler(load(ROOT / "params.yaml").evaluation.protocol, {"fd_digits": Network(FEATURES, "")}, CPU)
    far = extractor.extractors["fd_digits"].all_of(batches(255 - real.images[:300]))
    statistics_of(far).save(tmp_path / "ref.npz")
    source = f"{{path: {tmp_path / 'ref.npz'}, sha256: {sha256_file(tmp_path / 'ref.npz')}}}"
    changed = [f"evaluation.protocol.reference.statistics={source}"]
    protocol = load(ROOT / "params.yaml", (), changed).evaluation.protocol
    ruler = Ruler(protocol, {"fd_digits": Network(FEATURES, "")}, CPU)
    found, usual = distances(ruler, train.images, real.images), distances(extractor, train.images, real.images)
    assert found["fd_digits"] > 10 * usual["fd_digits"]
    assert (found["precision"], found["recall"]) == (usual["precision"], usual["recall"])
    (tmp_path / "ref.npz").write_bytes(b"another")
    with pytest.raises(DamagedFileError):
        distances(ruler, train.images, real.images)
