"""Splits of the classes into K parts: disjoint, covering, of sizes within one (MSD, arXiv 2410.23274).

Consecutive ids are the paper's choice for ImageNet-64, where ids follow sorted WordNet ids: neighbours are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msd.errors import PartitionError

Parts = list[list[int]]
RESTARTS = 10
ITERATIONS = 100


def consecutive(num_classes: int, students: int) -> Parts:
    """Runs of consecutive class ids; the first parts are the larger ones."""
    return [part.tolist() for part in np.array_split(np.arange(num_classes), students)]


def random(num_classes: int, students: int, seed: int) -> Parts:
    """A random split, a function of ``seed``."""
    order = np.random.default_rng(seed).permutation(num_classes)
    return _sorted([part.tolist() for part in np.array_split(order, students)])


def balanced_kmeans(embeddings: NDArray[np.float32], students: int, seed: int) -> Parts:
    """k-means whose assignment step is an optimal transport to clusters of equal capacity.

    Args:
        embeddings: (classes, dimensions).
        students: K.
        seed: of the starting centres; the best of ten starts counts.

    Returns:
        K parts; sizes differ by at most one.
    """
    from scipy.spatial.distance import cdist
    from sklearn.cluster import kmeans_plusplus

    rng = np.random.RandomState(seed)
    best: tuple[float, NDArray[np.int64]] | None = None
    for _ in range(RESTARTS):
        centres, _indices = kmeans_plusplus(embeddings, students, random_state=rng)
        owner = np.full(len(embeddings), -1)
        for _ in range(ITERATIONS):
            assigned = _balanced_assignment(cdist(embeddings, centres, "sqeuclidean"))
            if np.array_equal(assigned, owner):
                break
            owner = assigned
            centres = np.stack([embeddings[owner == k].mean(0) for k in range(students)])
        inertia = float(((embeddings - centres[owner]) ** 2).sum())
        if best is None or inertia < best[0]:
            best = inertia, owner
    assert best is not None
    return _sorted([np.flatnonzero(best[1] == k).tolist() for k in range(students)])


def _balanced_assignment(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cheapest assignment of rows to columns that gives every column ⌊n/K⌋ or ⌈n/K⌉ rows. (n, K) → (n,)."""
    from scipy.optimize import linear_sum_assignment

    n, k = cost.shape
    # every column has ⌊n/K⌋ places that must be filled, and one more that may be
    must = np.tile(cost - (cost.max() + 1) * n, n // k)
    owner = np.tile(np.arange(k), n // k + 1)
    rows, places = linear_sum_assignment(np.hstack([must, cost]))
    return owner[places][np.argsort(rows)]


def _sorted(parts: Parts) -> Parts:
    """A canonical order: classes ascending within parts, parts by their first class."""
    return sorted(sorted(part) for part in parts)


def check(parts: Sequence[Sequence[int]], num_classes: int, where: str) -> None:
    """Check that parts are disjoint, cover all classes and are balanced.

    Raises:
        PartitionError: naming every class concerned.
    """
    counts = np.zeros(num_classes, dtype=int)
    problems = []
    for k, part in enumerate(parts):
        outside = sorted(c for c in part if not 0 <= c < num_classes)
        if outside:
            problems.append(f"part {k} names classes that do not exist: {outside} (classes are 0…{num_classes - 1})")
        np.add.at(counts, [c for c in part if 0 <= c < num_classes], 1)
    if (counts == 0).any():
        problems.append(f"classes that no part owns: {np.flatnonzero(counts == 0).tolist()}")
    if (counts > 1).any():
        problems.append(f"classes that several parts own: {np.flatnonzero(counts > 1).tolist()}")
    sizes = [len(part) for part in parts]
    if max(sizes) - min(sizes) > 1:
        problems.append(f"sizes differ by more than one class: {sizes}")
    if problems:
        raise PartitionError(
            "The partition does not give every class exactly one student.",
            where=where,
            why="\n       ".join(problems),
            todo="Mend the parts; each class belongs to one part, sizes within one of each other.",
        )


def check_count(students: int, num_classes: int, where: str) -> None:
    """Check that there is a class for every student.

    Raises:
        PartitionError: K is larger than the number of classes.
    """
    if students > num_classes:
        raise PartitionError(
            f"{students} students cannot share {num_classes} classes.",
            where=where,
            why="every student needs at least one class",
            todo=f"Ask for at most {num_classes} students.",
        )
