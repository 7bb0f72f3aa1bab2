"""Every class has exactly one student, parts are equally large, and alike inside where that was asked for."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msd.errors import ConfigError, PartitionError
from msd.partition import parts as split
from msd.partition.build import build_partition, within_part_distance
from msd.partition.router import ClassRouter
from msd.store import Manifest, read_json

SIZES = [(1, 1), (2, 2), (10, 1), (10, 3), (10, 4), (10, 10), (11, 4), (100, 7), (1000, 8)]


def embeddings_of(num_classes: int) -> np.ndarray:
    return np.random.default_rng(num_classes).normal(size=(num_classes, 5)).astype(np.float32)


def build(folder: Path, num_classes: int, embeddings: np.ndarray | None = None, **settings: Any) -> Manifest:
    return build_partition(folder / "manifest.json", settings, {}, num_classes, embeddings)


def planted_clusters() -> tuple[np.ndarray, list[list[int]]]:
    """Twelve classes around three far centres, in an order that no split by index gives."""
    order = np.random.default_rng(5).permutation(12)
    owner = np.empty(12, dtype=int)
    owner[order] = np.arange(12) % 3
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    noise = np.random.default_rng(6).normal(size=(12, 2))
    parts = sorted(np.flatnonzero(owner == k).tolist() for k in range(3))
    return (centres[owner] + noise).astype(np.float32), parts


@pytest.mark.parametrize("kind", ["consecutive", "random", "kmeans", "explicit"])
@pytest.mark.parametrize(("num_classes", "students"), SIZES)
def test_parts_are_disjoint_cover_all_and_are_equal(kind: str, num_classes: int, students: int, tmp_path: Path) -> None:
    if kind == "kmeans" and num_classes == 1000:
        num_classes, students = 200, 8  # the optimal transport takes seconds for 1000
    settings: dict[str, Any] = {"kind": kind, "students": students, "seed": 0}
    if kind == "explicit":
        settings["parts"] = [list(range(k, num_classes, students)) for k in range(students)]
    manifest = build(tmp_path, num_classes, embeddings_of(num_classes), **settings)
    written = read_json(manifest.file("partition"))
    parts = written["parts"]
    assert manifest.results["parts"] == parts
    assert sorted(chain(*parts)) == list(range(num_classes))
    assert len(parts) == students
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) == written["balance"]["largest_minus_smallest"] <= 1
    assert written["balance"]["sizes"] == sizes


def test_consecutive_parts_are_runs() -> None:
    assert split.consecutive(10, 4) == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    assert split.consecutive(1000, 4)[3] == list(range(750, 1000))


def test_random_is_a_function_of_the_seed() -> None:
    assert split.random(100, 4, 0) == split.random(100, 4, 0)
    assert split.random(100, 4, 0) != split.random(100, 4, 1)
    assert split.random(100, 4, 0) != split.consecutive(100, 4)


def test_kmeans_recovers_planted_clusters() -> None:
    embeddings, planted = planted_clusters()
    for seed in range(5):
        assert split.balanced_kmeans(embeddings, 3, seed) == planted


def test_kmeans_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    embeddings = embeddings_of(30)
    before = np.random.get_state()[1].copy()
    one = split.balanced_kmeans(embeddings, 4, 0)
    np.random.default_rng().normal()
    assert split.balanced_kmeans(embeddings, 4, 0) == one
    assert (np.random.get_state()[1] == before).all()


def test_kmeans_stays_balanced_where_the_clusters_are_not() -> None:
    embeddings = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [10.0]], dtype=np.float32)
    assert split.balanced_kmeans(embeddings, 2, 0) == [[0, 1, 2], [3, 4, 5]]


def test_within_part_distance_prefers_parts_that_are_alike(tmp_path: Path) -> None:
    embeddings, planted = planted_clusters()
    alike = within_part_distance(embeddings, planted)
    assert alike < 2 < within_part_distance(embeddings, split.consecutive(12, 3))
    means = np.concatenate([embeddings[p] - embeddings[p].mean(0) for p in planted])
    assert alike == pytest.approx(np.sqrt((means**2).sum(1).mean()), rel=1e-5)
    assert build(tmp_path, 12, None, kind="consecutive", students=3).results["within_part_distance"] is None


def test_more_students_than_classes() -> None:
    with pytest.raises(PartitionError, match="11 students cannot share 10 classes") as refused:
        build(Path("nowhere"), 10, kind="consecutive", students=11)
    assert "at most 10" in refused.value.todo


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([[0, 1], [3, 4]], "classes that no part owns: [2, 5]"),
        ([[0, 1, 2, 3], [3, 4, 5]], "classes that several parts own: [3]"),
        ([[0, 1, 2, 2], [3, 4, 5]], "classes that several parts own: [2]"),
        ([[0, 1, 2], [3, 4, 5, 6]], "part 1 names classes that do not exist: [6] (classes are 0…5)"),
        ([[-1, 0, 1, 2], [3, 4, 5]], "part 0 names classes that do not exist: [-1] (classes are 0…5)"),
        ([[0], [1, 2, 3, 4, 5]], "sizes differ by more than one class: [1, 5]"),
    ],
)
def test_wrong_explicit_parts_are_named(parts: list[list[int]], problem: str, tmp_path: Path) -> None:
    with pytest.raises(PartitionError) as refused:
        build(tmp_path, 6, kind="explicit", students=2, parts=parts)
    assert problem in [line.strip() for line in refused.value.why.splitlines()]
    assert not list(tmp_path.iterdir())


def test_all_faults_of_explicit_parts_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(PartitionError) as refused:
        build(tmp_path, 6, kind="explicit", students=2, parts=[[0, 0, 9], [3]])
    assert len(refused.value.why.splitlines()) == 4


@pytest.mark.parametrize("parts", [[[0, 2], [1, 3]], [[3], [0], [2, 1]]])
def test_router_gives_the_owner(parts: list[list[int]]) -> None:
    router = ClassRouter(parts)
    cond = torch.tensor([3, 0, 1, 2, 0])
    assert all(c in parts[k] for c, k in zip(cond.tolist(), router(cond).tolist(), strict=True))
    assert router(torch.empty(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("cond", [[0, 4], [-1, 2]])
def test_router_refuses_a_class_that_does_not_exist(cond: list[int]) -> None:
    with pytest.raises(ConfigError, match=f"no class {cond[0] if cond[0] < 0 else cond[1]}") as refused:
        ClassRouter([[0, 1], [2, 3]])(torch.tensor(cond))
    assert "0…3" in refused.value.todo
