"""Fits the router of prompts to the pooled embeddings of training prompts, so that its parts are equally large.

Directions and centres are fitted on at most ``SAMPLE`` prompts, evenly spread over all; what balances the parts,
thresholds and offsets, on all of them. Embeddings are read in blocks and may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd.config import Hashed, Quadrants, TextKMeans, TextPartitionSpec
from msd.errors import DataError, PartitionError
from msd.partition.text_router import Tensors, TextRouter

SAMPLE = 100_000  # prompts that directions and centres are fitted on
BLOCK = 8192  # embeddings at once in float64
RESTARTS = 4
ITERATIONS = 60
SETTLED = 1e-4  # relative gain of an iteration after which k-means stops
SWEEPS = 100


def fit_router(
    embeddings: NDArray[Any] | None, spec: TextPartitionSpec, students: int, prompts: Sequence[str] = ()
) -> TextRouter:
    """A router whose parts of the given prompts are equally large, unless many embeddings are equal.

    Quadrants and, of less than 10,000 prompts, kmeans are balanced to a prompt; kmeans of more to 0.02 percentage
    points. Hash is as even as chance.

    Args:
        embeddings: (N, P) of the training prompts; kind hash does without.
        spec: quadrants (1, 2 or 4 students), kmeans or hash.
        students: K.
        prompts: (N) kind hash reports its balance on them, others do not look at them.

    Raises:
        PartitionError: there are fewer prompts than students, quadrants of another number, or so many equal
            embeddings that the parts differ by more than a percentage point.
        DataError: embeddings of a wrong shape, or not finite.
    """
    where = f"partition {spec.kind}, {students} students"
    if isinstance(spec, Hashed):
        router = TextRouter(spec, students, {}, None)
        router.balance = balance_of(router(None, prompts), students) if prompts else None
        return router
    if embeddings is None or embeddings.ndim != 2:
        found = None if embeddings is None else embeddings.shape
        raise DataError("Embeddings must be a matrix.", where=where, why=f"shape {found}, expected (N, P)")
    if len(embeddings) < students:
        raise PartitionError(
            f"{students} students cannot share {len(embeddings)} prompts.", where=where, todo="Give more prompts."
        )
    _check_finite(embeddings, where)
    if isinstance(spec, Quadrants):
        tensors = _quadrants(embeddings, students, where)
    else:
        tensors = _kmeans(embeddings, students, spec)
    router = TextRouter(spec, students, tensors, embeddings.shape[1])
    router.balance = balance_of(router.by_embedding(embeddings), students)
    _check_balance(router.balance["sizes"], where)
    return router


def balance_of(owners: NDArray[np.int64], students: int) -> dict[str, Any]:
    """Sizes of the parts, their shares, and the largest share minus the smallest in percentage points."""
    sizes = np.bincount(owners, minlength=students)
    total = max(int(sizes.sum()), 1)
    return {
        "prompts": len(owners),
        "sizes": sizes.tolist(),
        "shares": (sizes / total).tolist(),
        "largest_minus_smallest_points": 100 * int(sizes.max() - sizes.min()) / total,
    }


def _check_balance(sizes: list[int], where: str) -> None:
    if max(sizes) - min(sizes) > max(1, sum(sizes) / 100):
        raise PartitionError(
            "The parts cannot be made equally large.",
            where=where,
            why=f"sizes {sizes}; many prompts have the same embedding",
            todo="Remove duplicates among the prompts, or split them by kind hash.",
        )


def _check_finite(embeddings: NDArray[Any], where: str) -> None:
    for i, block in enumerate(_blocks(embeddings)):
        broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(broken):
            raise DataError(
                "An embedding is not finite.",
                where=f"{where}, row {i * BLOCK + broken[0]}",
                todo="Look at that prompt and the precision of the text encoder.",
            )


def _blocks(embeddings: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Rows in their order, (at most BLOCK, P)."""
    for first in range(0, len(embeddings), BLOCK):
        yield np.asarray(embeddings[first : first + BLOCK], dtype=np.float64)


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of ``count`` rows, evenly spread."""
    chosen = min(count, most)
    return np.arange(chosen) * count // max(chosen, 1)


def _sample(embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """At most SAMPLE rows, evenly spread."""
    if len(embeddings) <= SAMPLE:
        return np.asarray(embeddings, dtype=np.float32)
    return np.asarray(embeddings[spread(len(embeddings), SAMPLE)], dtype=np.float32)


def _quadrants(embeddings: NDArray[Any], students: int, where: str) -> Tensors:
    """Directions and thresholds: the median of the first component, then each half's own median of the second."""
    if students not in (1, 2, 4):
        raise PartitionError(
            f"There are no quadrants for {students} students.",
            where=where,
            why="quadrants are halves of halves",
            todo="Ask for 1, 2 or 4 students, or choose kind text-kmeans.",
        )
    directions = _principal(_sample(embeddings), students.bit_length() - 1)
    scores = np.concatenate([block @ directions.T.astype(np.float64) for block in _blocks(embeddings)])
    thresholds, members = [], [np.arange(len(scores))]
    for component in scores.T:
        halves = []
        for rows in members:
            threshold = _between(component[rows], len(rows) // 2)
            thresholds.append(threshold)
            halves += [rows[component[rows] <= threshold], rows[component[rows] > threshold]]
        members = halves
    return {"directions": directions, "thresholds": np.array(thresholds, dtype=np.float64)}


def _principal(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first principal components (count, P), the largest entry of each positive."""
    mean = rows.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for block in _blocks(rows):
        covariance += (block - mean).T @ (block - mean)
    _values, vectors = np.linalg.eigh(covariance)
    first = vectors.T[::-1][:count]
    largest = np.take_along_axis(first, np.abs(first).argmax(axis=1)[:, None], axis=1)
    return (first * np.sign(largest)).astype(np.float32)


def _kmeans(embeddings: NDArray[Any], students: int, spec: TextKMeans) -> Tensors:
    """Centres of the best of some starts, and offsets that balance all prompts; parts by their first prompt."""
    from sklearn.cluster import kmeans_plusplus

    rows = _sample(embeddings)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows = rows - mean  # float32 resolves distances better then
    rng = np.random.RandomState(spec.seed)
    starts = [kmeans_plusplus(rows, students, random_state=rng)[0] for _ in range(RESTARTS)]
    centres = mean + min((_lloyd(rows, start) for start in starts), key=lambda found: found[0])[1]
    cost = np.hstack([_cost(block, centres.astype(np.float64)) for block in _blocks(embeddings)])
    offsets = balancing_offsets(cost, np.zeros(students), max(1, len(embeddings) // 5000), SWEEPS)
    owners = (cost + offsets[:, None]).argmin(axis=0)
    order = np.argsort([np.flatnonzero(owners == k)[:1].sum() for k in range(students)], kind="stable")
    return {"centres": centres[order], "offsets": offsets[order]}


def _lloyd(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
    """k-means of equal parts from given centres (K, P): the mean squared distance in the end, and the centres."""
    offsets, before = np.zeros(len(centres)), np.inf
    common = float(np.einsum("np,np->", rows, rows, dtype=np.float64)) / len(rows)
    for _ in range(ITERATIONS):
        cost = _cost(rows, centres)
        offsets = balancing_offsets(cost, offsets, max(1, len(rows) // 1000), 3)
        owners = (cost + offsets[:, None]).argmin(axis=0)
        parts = np.equal.outer(np.arange(len(centres)), owners).astype(np.float32)
        centres = (parts @ rows) / np.maximum(parts.sum(axis=1, keepdims=True), 1)
        now = common + float(np.take_along_axis(cost, owners[None], axis=0).mean(dtype=np.float64))
        if before - now <= SETTLED * now:
            break
        before = now
    return now, centres


def _cost(rows: NDArray[Any], centres: NDArray[Any]) -> NDArray[Any]:
    """Squared distances of rows (N, P) to centres (K, P), less ‖row‖², which all have in common: (K, N)."""
    return (centres**2).sum(axis=1)[:, None] - 2 * np.ascontiguousarray((rows @ centres.T).T)


def balancing_offsets(
    cost: NDArray[Any], offsets: NDArray[np.float64], tolerance: int, sweeps: int
) -> NDArray[np.float64]:
    """Offsets o (K,) with which argmin_k (cost_ki + o_k) gives parts of equal size.

    They are the dual variables of the optimal transport of rows to equal capacities. Each is maximised over in turn,
    the others held, which puts exactly its share of the rows below their next best.

    Args:
        cost: (K, N).
        offsets: where to start from.
        tolerance: largest minus smallest part, in rows, that is good enough.
        sweeps: over all offsets, at most; the best are returned.
    """
    students = len(cost)
    places = np.diff(np.arange(students + 1) * cost.shape[1] // students)
    best, found = offsets, np.inf
    for _ in range(sweeps + 1):
        shifted = cost + offsets[:, None]
        sizes = np.bincount(shifted.argmin(axis=0), minlength=students)
        if (unequal := sizes.max() - sizes.min()) < found:
            best, found = offsets, unequal
        if found <= tolerance:
            break
        later = np.minimum.accumulate(shifted[::-1])[::-1]  # row k: the least of k and those after it
        earlier = np.full(cost.shape[1], np.inf)
        offsets = offsets.copy()
        for k in range(students):
            others = np.minimum(earlier, later[k + 1]) if k + 1 < students else earlier
            offsets[k] = _between(others - cost[k], cost.shape[1] - places[k])
            earlier = np.minimum(earlier, cost[k] + offsets[k])
    return best - best.mean()


def _between(values: NDArray[Any], below: int) -> float:
    """A threshold with ``below`` of the values (n,) below it and the others above, half-way between neighbours."""
    if not 0 < below < len(values):
        return float(values[:1].sum())
    return float(np.partition(values, [below - 1, below])[below - 1 : below + 1].mean())
