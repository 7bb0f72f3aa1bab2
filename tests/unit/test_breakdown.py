"""Who is good at what: the diagonal is the routed model, few images raise a distance, a copying student is caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_evaluate import FEATURES, JUDGE, write_bundle
from tiny import CLASSES, IMAGE_SHAPE, ROOT, data, network

from msd.bundle.bundle import Bundle
from msd.config import Compute, load
from msd.data.archive import LabelledImages, to_float
from msd.data.grid import shown_classes as pictured
from msd.errors import ConfigError, DataError
from msd.evaluate.breakdown import Drawn, break_down, draw, nearest_training_images, scores
from msd.evaluate.classifier import Classifier, load_classifier
from msd.evaluate.feature_space import features_of, frechet, gaussian
from msd.evaluate.features import Extractor, open_extractor
from msd.evaluate.frechet import frechet_distance
from msd.evaluate.matrix import balanced
from msd.evaluate.metrics import asked_class_share, statistics_of
from msd.evaluate.nearest import compare, nearest, pixels
from msd.evaluate.sampling import draw as draw_images
from msd.evaluate.sampling import shown_classes
from msd.networks import Preconditioned, load_network
from msd.plan import Node
from msd.store import Manifest

CPU = torch.device("cpu")
IMAGES = 200
PROTOCOL = load(ROOT / "params.yaml").evaluation.protocol
SETTINGS: dict[str, Any] = {
    "protocol": PROTOCOL.model_dump(mode="json"),
    "images": IMAGES,
    "batch_size": 100,
    "nearest": 100,
    "columns": 3,
}
PARTS = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return open_extractor(FEATURES, {"source": "file"}, "tensorflow", CPU)


def distance(images: NDArray[np.uint8], reference: NDArray[np.uint8], extractor: Extractor) -> float:
    """The distance as the table's rows are scored."""
    return frechet_distance(*(statistics_of(extractor.all_of([half])) for half in (images, reference)))


def sample(bundle: Bundle, images: int, student: int | None = None) -> NDArray[np.uint8]:
    parts = [draw_images(bundle, PROTOCOL, first, 10, CPU, student)[0].numpy() for first in range(0, images, 10)]
    return np.concatenate(parts)


def student(seed: int) -> Preconditioned:
    """A one-step student of digits, another one for each seed: the teacher's weights, disturbed."""
    net = load_network(ROOT / "resources" / "teachers" / "mnist.safetensors")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * p.std(correction=0) * torch.randn(p.shape, generator=generator))
    return net


@pytest.fixture(scope="module")
def node(digits: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A breakdown of two students whose inputs are there."""
    folder = tmp_path_factory.mktemp("results")
    inputs = {role: Node(role, role, role, {}, {}, folder) for role in ("bundle", "data", "features", "judge")}
    write_bundle(inputs["bundle"].manifest.parent, PARTS, [student(0), student(1)])
    for role, path in (("features", FEATURES), ("judge", JUDGE)):
        Manifest.write(inputs[role].manifest, kind="classifier", settings={}, files={"weights": path})
    files = {name: digits.file(name) for name in digits.body["files"]}
    Manifest.write(inputs["data"].manifest, kind="data", settings={}, files=files, results=digits.results)
    return Node("breakdown", "evaluation/breakdown", "pair", SETTINGS, inputs, folder, "pair breakdown")


@pytest.fixture(scope="module")
def bundle(node: Node) -> Bundle:
    return Bundle(node.inputs["bundle"].manifest.parent)


@pytest.fixture(scope="module")
def made(node: Node) -> Manifest:
    return break_down(node, Compute(), lambda *_: None)


def test_the_diagonal_is_the_routed_evaluation(
    made: Manifest, bundle: Bundle, real: LabelledImages, extractor: Extractor
) -> None:
    """The same images through the other path: routed sampling, and the distance of the table."""
    routed, asked = sample(bundle, IMAGES), np.arange(IMAGES) % 10

    def of(classes: list[int]) -> float:
        mine, others = (
            images[np.isin(labels, classes)] for images, labels in ((routed, asked), (real.images, real.labels))
        )
        return distance(mine, others, extractor)

    shown = shown_classes(torch.from_numpy(routed), load_classifier(JUDGE))
    _, per_class = asked_class_share(shown, asked, np.arange(10))
    for k, part in enumerate(made.results["parts"]):
        assert part["classes"] == PARTS[k]
        assert part["images"] == 20 * len(PARTS[k])
        assert part["distance"][k] == pytest.approx(of(PARTS[k]), rel=1e-3)
        assert part["asked_class_share"][k] == pytest.approx(np.mean([per_class[c] for c in PARTS[k]]), abs=0.02)
    assert made.results["routed"]["distance"] == pytest.approx(of(list(range(10))), rel=1e-3)
    assert made.results["classes"][7]["distance"] == pytest.approx(of([7]), rel=1e-3)
    assert [c["student"] for c in made.results["classes"]] == [0] * 6 + [1] * 4


def test_off_the_diagonal_is_the_wrong_student(
    made: Manifest, bundle: Bundle, real: LabelledImages, extractor: Extractor
) -> None:
    wrong = sample(bundle, IMAGES, student=1)
    mine = wrong[np.isin(np.arange(IMAGES) % 10, PARTS[0])]
    found = distance(mine, real.images[np.isin(real.labels, PARTS[0])], extractor)
    assert made.results["parts"][0]["distance"][1] == pytest.approx(found, rel=1e-3)
    assert found != pytest.approx(made.results["parts"][0]["distance"][0], rel=1e-2)


def test_pictures_have_every_student_on_the_same_noise(made: Manifest, bundle: Bundle) -> None:
    shown = np.load(made.file("students"))
    assert shown.shape == (10, 2, 3, 1, 28, 28)
    for k in range(2):
        drawn = sample(bundle, 30, student=k).astype(int)
        assert np.abs(shown[:, k] - drawn.reshape(3, 10, 1, 28, 28).swapaxes(0, 1)).max() <= 1
    triples = np.load(made.file("nearest"))
    assert triples.shape == (10, 3, 1, 28, 28)


def test_pictures_show_some_of_many_classes() -> None:
    assert pictured(3) == [0, 1, 2]
    assert len(pictured(1000)) == 20
    assert pictured(1000)[-1] == 999


def test_few_images_raise_a_distance_and_the_floor_says_by_how_much(
    train: LabelledImages, real: LabelledImages, extractor: Extractor
) -> None:
    """Real training images as a student's: their distance is the floor at any size, and the smaller the larger."""

    def floor(per_class: int) -> dict[str, Any]:
        by_turns = balanced(train.labels, 10, per_class).reshape(10, per_class).T.ravel()
        asked, owner = train.labels[by_turns], np.zeros(10, np.int64)
        features = [features_of(train.images[by_turns], extractor)]
        drawn = Drawn(asked, owner, features, np.ones((1, 10)), train.images[by_turns], np.empty(0, np.uint8))
        return scores(drawn, train, real, extractor)

    few, many = floor(10), floor(200)
    for found in (few, many):
        assert found["routed"]["distance"] == pytest.approx(found["routed"]["floor"])
        assert [c["distance"] for c in found["classes"]] == pytest.approx([c["floor"] for c in found["classes"]])
    assert few["routed"]["floor"] > 3 * many["routed"]["floor"]
    for less, more in zip(few["classes"], many["classes"], strict=True):
        assert (less["images"], more["images"]) == (10, 200)
        assert less["floor"] > 2 * more["floor"] > 0


@pytest.mark.parametrize("count", [40, 1000])  # fewer than features, and more
def test_distance_of_few_images_is_that_of_the_table(
    train: LabelledImages, real: LabelledImages, extractor: Extractor, count: int
) -> None:
    a, b = (gaussian(features_of(half.images[:count], extractor), "digits") for half in (train, real))
    expected = distance(train.images[:count], real.images[:count], extractor)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def copying(image: NDArray[np.uint8]) -> Preconditioned:
    """A student that has learnt one image by heart: zero weights, and the image as the last layer's bias."""
    net = network(pixel_unshuffle=IMAGE_SHAPE[1], channel_mult=[1])
    folded = torch.nn.functional.pixel_unshuffle(to_float(torch.from_numpy(image)), IMAGE_SHAPE[1])
    with torch.no_grad():
        net.model.out_conv.weight.zero_()
        net.model.out_conv.bias.copy_(folded.flatten() / net.sigma_data)  # see test_evaluate.constant_network
    return net


def noisy_images(seed: int) -> LabelledImages:
    """Images that have nothing to do with one another, 40 of each class."""
    images = np.random.default_rng(seed).integers(0, 256, (40 * CLASSES, *IMAGE_SHAPE)).astype(np.uint8)
    return LabelledImages(images, np.arange(len(images), dtype=np.int64) % CLASSES, CLASSES, "of-no-importance")


@pytest.mark.filterwarnings("error")
def test_a_student_that_copies_a_training_image_is_caught(tmp_path: Path) -> None:
    train, held_out = noisy_images(0), noisy_images(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Classifier(IMAGE_SHAPE, CLASSES, 8, 32).eval()
    features = Extractor(lambda x: judge.of_uint8(x)[0], lambda images: images, CPU)
    students = {
        "copying": [copying(train.images[3]), copying(train.images[8])],
        "others": [copying(held_out.images[3]), network(1)],
    }
    found = {}
    for name, nets in students.items():
        bundle = Bundle(write_bundle(tmp_path / name, [[0, 1], [2, 3]], nets))
        drawn = draw(bundle, SETTINGS, features, judge, np.arange(4), CPU, lambda *_: None)
        found[name], triples = nearest_training_images(drawn, 100, train, held_out, features)
        if name == "copying":
            assert np.abs(triples[:, 0].astype(int) - triples[:, 1]).max() <= 1
            assert np.array_equal(triples[:, 1], train.images[[3, 3, 8, 8]])
    assert found["copying"]["pixels"]["near_share"] == found["copying"]["features"]["near_share"] == 1
    assert found["copying"]["pixels"]["generated_median"] < 1 < found["copying"]["pixels"]["held_out_smallest"]
    assert found["others"]["pixels"]["near_share"] < 0.6  # student 1 is smooth, student 0 draws what is held out
    assert found["others"]["pixels"]["generated_smallest"] > 10


def test_real_images_are_as_near_as_real_images(train: LabelledImages, real: LabelledImages) -> None:
    """The scale itself: of held-out images judged by other held-out images about 5 % are near."""
    both = nearest(real.images, train.images, pixels)
    odd = np.arange(len(real.images)) % 2 == 1
    order = np.concatenate([np.flatnonzero(odd), np.flatnonzero(~odd)])
    first, second = nearest(real.images[order], train.images, pixels).split(int(odd.sum()))
    assert np.array_equal(first.distance, both.distance[odd])
    assert compare(first, second)["near_share"] == pytest.approx(0.05, abs=0.03)
    assert compare(first, second)["generated_median"] == pytest.approx(both.distance.mean(), rel=0.1)


def test_nearest_is_the_nearest_and_a_copy_is_at_no_distance(train: LabelledImages) -> None:
    copies = train.images[[7, 2499]]
    found = nearest(copies, train.images, pixels)
    assert found.index.tolist() == [7, 2499]
    assert found.distance.tolist() == [0, 0]
    differences = train.images[:2499].astype(float) - train.images[2499]
    others = nearest(copies[1:], train.images[:2499], pixels)
    assert others.distance[0] == pytest.approx(np.sqrt((differences**2).mean(axis=(1, 2, 3))).min(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 201}, "10 classes need the same number each"),
        ({"images": 10, "columns": 1}, "at least 2"),
        ({"images": 40, "columns": 5}, "at least 50"),
    ],
)
def test_number_of_images_that_does_not_suit(
    bundle: Bundle, extractor: Extractor, changes: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        draw(bundle, SETTINGS | changes, extractor, load_classifier(JUDGE), np.arange(10), CPU, lambda *_: None)
    assert refused.value.where == f"evaluation.breakdown.images: {changes['images']}"


def test_wrong_sizes_are_clear_errors(extractor: Extractor, real: LabelledImages) -> None:
    with pytest.raises(DataError, match="not the shape that the feature network knows"):
        features_of(data().images, extractor)
    with pytest.raises(DataError, match="cannot be compared with the training images"):
        nearest(data().images, real.images, pixels)
    with pytest.raises(DataError, match="the 0 training images"):
        nearest(real.images[:2], real.images[:0], pixels)
    with pytest.raises(DataError, match="two images or more") as few:
        gaussian(np.zeros((1, 4)), "images of student 3, class 7")
    assert few.value.where == "images of student 3, class 7"
    with pytest.raises(DataError, match="not finite"):
        gaussian(np.full((3, 4), np.nan), "images")
    with pytest.raises(DataError, match="4 and 5"):
        frechet(gaussian(np.eye(4), "a"), gaussian(np.eye(5), "b"))


def test_a_class_without_training_images_is_named(
    bundle: Bundle, extractor: Extractor, train: LabelledImages, real: LabelledImages
) -> None:
    drawn = draw(
        bundle,
        SETTINGS | {"images": 20, "columns": 2},
        extractor,
        load_classifier(JUDGE),
        np.arange(10),
        CPU,
        lambda *_: None,
    )
    some = train.labels != 4
    poor = LabelledImages(train.images[some], train.labels[some], 10, train.sha256)
    with pytest.raises(DataError) as refused:
        scores(drawn, poor, real, extractor)
    assert refused.value.where == "training images, class 4"


def test_a_bundle_of_other_images_is_refused(node: Node, tmp_path: Path) -> None:
    inputs = node.inputs | {"bundle": Node("bundle", "bundles", "other", {}, {}, tmp_path)}
    write_bundle(inputs["bundle"].manifest.parent, [[0, 1], [2, 3]], [network(0), network(1)])
    other = Node("breakdown", "evaluation/breakdown", "other", SETTINGS, inputs, tmp_path)
    with pytest.raises(ConfigError, match=r"networks: \(1, 8, 8\), 4 classes; data: \(1, 28, 28\), 10"):
        break_down(other, Compute(), lambda *_: None)
