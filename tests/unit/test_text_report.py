"""What a partition of prompts says about itself, and partitions of real captions by a real sentence encoder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sentences import captions, embed, encode, encoder_folder

from msd.config import Hashed, Quadrants, TextKMeans, TextPartitionSpec
from msd.partition.build import within_part_distance
from msd.partition.text_fit import balance_of, fit_router, spread
from msd.partition.text_report import describe_parts, stability
from msd.partition.text_router import TextRouter

QUADRANTS, KMEANS, HASH = Quadrants(), TextKMeans(kind="text-kmeans"), Hashed(kind="hash")
MEANT = [QUADRANTS, KMEANS]  # the kinds that look at the meaning
ON_TRAINING, ON_HELD_OUT = 1.0, 3.0  # largest minus smallest part, percentage points
WORDS = [["giraffe", "zebra"], ["pizza", "plate"], ["train", "street"]]
Half = tuple[list[str], np.ndarray]


def planted() -> tuple[np.ndarray, list[str], np.ndarray]:
    """300 prompts of three topics, their embeddings and topics."""
    rng = np.random.default_rng(0)
    topics = rng.permutation(np.arange(300) % 3)
    embeddings = (np.eye(3)[topics] * 8 + rng.normal(size=(300, 3))).astype(np.float32)
    prompts = [f"the {WORDS[t][i % 2]} and a thing number{i}" for i, t in enumerate(topics)]
    return embeddings, prompts, topics


def test_a_report_of_planted_topics() -> None:
    embeddings, prompts, topics = planted()
    router = fit_router(embeddings, KMEANS, 3)
    found = describe_parts(router, embeddings, prompts, examples=4, terms=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == describe_parts(router, embeddings, prompts, examples=4, terms=2)
    assert (found["prompts"], found["sizes"], found["largest_minus_smallest_points"]) == (300, [100] * 3, 0)
    owners = router(embeddings, prompts)
    members = [np.flatnonzero(owners == k).tolist() for k in range(3)]
    assert found["within_part_distance"] == within_part_distance(embeddings, members)
    assert found["within_part_distance"] < found["distance_of_one_part"] / 2
    for k, part in enumerate(found["parts"]):
        assert sorted(term["term"] for term in part["terms"]) == sorted(WORDS[topics[members[k][0]]])
        assert [term["prompts"] for term in part["terms"]] == [
            sum(term["term"] in prompts[i] for i in members[k]) for term in part["terms"]
        ]
        rows = embeddings[members[k]]
        nearest = ((rows - rows.mean(0)) ** 2).sum(1).argsort(kind="stable")[:4]
        assert part["examples"] == [prompts[members[k][i]] for i in nearest]


def test_a_report_of_few_and_odd_prompts() -> None:
    embeddings, _prompts, _topics = planted()
    router = fit_router(embeddings, KMEANS, 3)
    none = describe_parts(router, embeddings[:0], [])
    assert none["sizes"] == [0, 0, 0]
    assert [(part["examples"], part["terms"], part["within_part_distance"]) for part in none["parts"]] == [
        ([], [], None)
    ] * 3
    odd = ["\ud800", "", "word", "a" * 5000, "\0\n"]
    found = describe_parts(router, embeddings[:5], odd)
    assert json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    examples = [example for part in found["parts"] for example in part["examples"]]
    assert sorted(examples) == sorted(["\\ud800", "", "word", "a" * 200 + "…", "\0\n"])
    same = describe_parts(router, embeddings, ["the same"] * 300)
    assert [part["examples"] for part in same["parts"]] == [["the same"]] * 3


def test_stability_over_seeds() -> None:
    embeddings, prompts, _ = planted()
    same = {"mean": 1.0, "min": 1.0}
    assert stability(embeddings, QUADRANTS, 4, prompts) == {"seeds": [], "prompts": 0} | same
    assert stability(embeddings, KMEANS, 3, prompts, further=2) == {"seeds": [0, 1, 2], "prompts": 300} | same
    by_text = stability(embeddings, HASH.model_copy(update={"seed": 7}), 3, prompts)
    assert (by_text["seeds"], by_text["prompts"]) == ([7, 8, 9, 10], 300)
    assert abs(by_text["mean"]) < 0.05
    assert by_text["min"] < by_text["mean"]


def test_stability_looks_at_a_sample_spread_over_all_prompts() -> None:
    embeddings, prompts, topics = planted()
    order = topics.argsort(kind="stable")  # a beginning would hold one topic
    found = stability(embeddings[order], KMEANS, 3, [prompts[i] for i in order], most=60)
    assert found == {"seeds": [0, 1, 2, 3], "prompts": 60, "mean": 1.0, "min": 1.0}
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 4).tolist() == [0, 1, 2]
    assert spread(0, 4).tolist() == []


def test_stability_of_what_cannot_be_made_equally_large() -> None:
    same = stability(np.ones((300, 3), dtype=np.float32), KMEANS, 3, ["the same"] * 300)
    assert same == {"seeds": [0, 1, 2, 3], "prompts": 300, "mean": None, "min": None}


@pytest.fixture(scope="session")
def encoder() -> Path:
    return encoder_folder()


def halves(encoder: Path, stride: int) -> tuple[Half, Half]:
    """Training and held-out captions with their embeddings; no caption is in both."""
    training, held_out = (captions(name, stride) for name in ("coco-captions-train", "coco14-eval-30k"))
    assert not set(training) & set(held_out)
    return (training, embed(training, encoder)), (held_out, embed(held_out, encoder))


@pytest.fixture(scope="session")
def some(encoder: Path) -> tuple[Half, Half]:
    """Every seventh caption: 7573 and 4286."""
    return halves(encoder, 7)


def check_balance(spec: TextPartitionSpec, data: tuple[Half, Half]) -> TextRouter:
    (training, seen), (held_out, unseen) = data
    router = fit_router(seen, spec, 4)
    on_training = balance_of(router(seen, training), 4)
    assert on_training == router.balance
    assert on_training["largest_minus_smallest_points"] <= 0.1 < ON_TRAINING
    on_held_out = balance_of(router(unseen, held_out), 4)
    assert on_held_out["largest_minus_smallest_points"] <= ON_HELD_OUT
    return router


@pytest.fixture(scope="session")
def routers(some: tuple[Half, Half]) -> dict[str, TextRouter]:
    """Kind → a balanced router of real captions."""
    return {spec.kind: check_balance(spec, some) for spec in MEANT}


@pytest.mark.parametrize("spec", MEANT, ids=lambda spec: spec.kind)
def test_parts_of_real_captions_are_balanced_and_mean_something(
    spec: TextPartitionSpec, routers: dict[str, TextRouter], some: tuple[Half, Half], tmp_path: Path
) -> None:
    router = routers[spec.kind]
    (training, seen), (held_out, unseen) = some
    router.save(tmp_path)
    assert (TextRouter.load(tmp_path)(unseen, held_out) == router(unseen, held_out)).all()
    found = describe_parts(router, seen, training)
    by_hash = describe_parts(fit_router(None, HASH, 4), seen, training)
    assert found["within_part_distance"] < 0.97 * found["distance_of_one_part"]
    assert by_hash["within_part_distance"] > 0.99 * by_hash["distance_of_one_part"]
    first = [{term["term"] for term in part["terms"]} for part in found["parts"]]
    assert sum({"table", "plate", "food", "pizza"} & words != set() for words in first) in (1, 2)
    assert min(part["terms"][0]["z"] for part in found["parts"]) > 10


@pytest.mark.parametrize("spec", MEANT, ids=lambda spec: spec.kind)
def test_every_prompt_gets_one_student(spec: TextPartitionSpec, routers: dict[str, TextRouter], encoder: Path) -> None:
    router = routers[spec.kind]
    odd = [
        "",
        " \t\n",
        "\0\x07\x1b[0m",
        "🦒🦓" * 30,
        "猫が窓辺にいる",
        "\u202eneila",
        "word " * 3000,
        "x" * 20_000,
        "%s ../..",
    ]
    embeddings = encode(odd, encoder)
    owners = router(embeddings, odd)
    assert set(owners.tolist()) <= {0, 1, 2, 3}
    assert [router(row[None], [prompt])[0] for row, prompt in zip(embeddings, odd, strict=True)] == owners.tolist()


def test_parts_of_real_captions_hardly_depend_on_the_seed(some: tuple[Half, Half]) -> None:
    texts, rows = some[0]
    assert stability(rows[::2], KMEANS, 4, texts[::2], further=2)["min"] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("spec", MEANT, ids=lambda spec: spec.kind)
def test_parts_of_all_captions_are_balanced(spec: TextPartitionSpec, encoder: Path) -> None:
    """83,000 captions; embedding them takes eight minutes of two CPU cores, once, so only with ALL_CAPTIONS=1."""
    if not os.environ.get("ALL_CAPTIONS"):
        pytest.skip("ALL_CAPTIONS=1 takes all captions, not each seventh; eight minutes")
    check_balance(spec, halves(encoder, 1))
