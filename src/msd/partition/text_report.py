"""What a partition of prompts looks like: sizes, examples, words, likeness, and whether another seed gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd.config import Quadrants, TextPartitionSpec
from msd.errors import PartitionError
from msd.partition.build import within_part_distance
from msd.partition.text_fit import balance_of, fit_router, spread
from msd.partition.text_router import TextRouter

PRIOR = 1000.0  # prompts' words that the prior is worth, spread as in all prompts
VOCABULARY = 20_000  # words that are looked at, the most frequent
SHOWN = 200  # characters of an example
COMPARED = 20_000  # prompts that the partitions of different seeds are compared on


def describe_parts(
    router: TextRouter, embeddings: NDArray[Any], prompts: Sequence[str], examples: int = 8, terms: int = 12
) -> dict[str, Any]:
    """The parts of some prompts, ready for JSON.

    Args:
        router: says who owns what.
        embeddings: (N, P).
        prompts: (N).
        examples: prompts shown of each part, those nearest to its mean, no text twice.
        terms: words shown of each part.

    Returns:
        ``prompts``, ``sizes``, ``shares`` and ``largest_minus_smallest_points``; ``within_part_distance``, the root
        mean squared distance to the part's mean, beside ``distance_of_one_part``; ``parts`` with the same for each,
        its ``examples`` and its ``terms``: a word, its z score against the other parts, and how many of the part's
        prompts hold it. None where there are no prompts.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    owners = router(rows, prompts)
    balance = balance_of(owners, router.students)
    members = [np.flatnonzero(owners == k) for k in range(router.students)]
    words = _typical_words(prompts, owners, router.students, terms)
    parts = [
        {
            "size": balance["sizes"][k],
            "share": balance["shares"][k],
            "within_part_distance": _distance(rows, [members[k]]),
            "examples": _nearest_to_mean(rows[members[k]], [prompts[i] for i in members[k].tolist()], examples),
            "terms": words[k],
        }
        for k in range(router.students)
    ]
    return {
        "kind": router.spec.kind,
        "students": router.students,
        **balance,
        "within_part_distance": _distance(rows, members),
        "distance_of_one_part": _distance(rows, [np.arange(len(rows))]),
        "parts": parts,
    }


def stability(
    embeddings: NDArray[Any],
    spec: TextPartitionSpec,
    students: int,
    prompts: Sequence[str],
    further: int = 3,
    most: int = COMPARED,
) -> dict[str, Any]:
    """Adjusted Rand index of the partitions that different seeds give: 1 the same, 0 as alike as by chance.

    Each is fitted anew on a sample, so this costs no more for millions of prompts than for ``most`` of them.

    Args:
        embeddings: (N, P).
        spec: quadrants have no seed, so theirs is 1.
        students: K.
        prompts: (N).
        further: seeds that are compared with the one in ``spec`` and with one another.
        most: prompts that are looked at, evenly spread over all.

    Returns:
        ``seeds``, none of quadrants; ``prompts``, how many were looked at; ``mean`` and ``min`` over pairs of seeds,
        None where the parts of one of them cannot be made equally large.
    """
    from sklearn.metrics import adjusted_rand_score

    if isinstance(spec, Quadrants):
        return {"seeds": [], "prompts": 0, "mean": 1.0, "min": 1.0}
    chosen = spread(len(prompts), most)
    rows, texts = np.asarray(embeddings[chosen], dtype=np.float32), [prompts[i] for i in chosen.tolist()]
    found: dict[str, Any] = {"seeds": [spec.seed + i for i in range(further + 1)], "prompts": len(texts)}
    specs = [spec.model_copy(update={"seed": seed}) for seed in found["seeds"]]
    try:
        owners = [fit_router(rows, of_seed, students, texts)(rows, texts) for of_seed in specs]
    except PartitionError:
        return {**found, "mean": None, "min": None}
    pairs = [float(adjusted_rand_score(one, other)) for one, other in combinations(owners, 2)]
    return {**found, "mean": float(np.mean(pairs)), "min": min(pairs)}


def _distance(rows: NDArray[np.float32], members: list[NDArray[np.int64]]) -> float | None:
    parts = [part.tolist() for part in members if len(part)]
    return within_part_distance(rows, parts) if parts else None


def _nearest_to_mean(rows: NDArray[np.float32], prompts: list[str], count: int) -> list[str]:
    """The first ``count`` different prompts by distance to the mean of rows (n, P); the first of equals."""
    if not len(rows):
        return []
    distances = ((rows - rows.mean(axis=0)) ** 2).sum(axis=1)
    found: dict[str, None] = {}
    for i in np.argsort(distances, kind="stable"):
        found[_printable(prompts[i])] = None
        if len(found) == count:
            break
    return list(found)


def _printable(prompt: str) -> str:
    """The beginning of a prompt, with escapes for what UTF-8 cannot hold."""
    text = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def _typical_words(
    prompts: Sequence[str], owners: NDArray[np.int64], students: int, count: int
) -> list[list[dict[str, Any]]]:
    """The words of each part that are most surely more frequent than in the others, English stop words left out.

    The score is the log-odds ratio with a prior over its standard deviation (Monroe et al. 2008, "Fightin' words").
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(stop_words="english", binary=True, max_features=VOCABULARY)
    try:
        held = vectorizer.fit_transform(prompts)
    except ValueError:  # there is not one word
        return [[] for _ in range(students)]
    words = vectorizer.get_feature_names_out()
    found = np.stack([np.asarray(held[owners == k].sum(axis=0)).ravel() for k in range(students)]).astype(np.float64)
    total = found.sum(axis=0)
    prior = PRIOR * total / total.sum()
    typical = []
    for mine in found:
        ours, theirs = mine + prior, total - mine + prior
        with np.errstate(divide="ignore", invalid="ignore"):  # a vocabulary of one word: no odds, no term
            odds = np.log(ours / (ours.sum() - ours)) - np.log(theirs / (theirs.sum() - theirs))
            z = odds / np.sqrt(1 / ours + 1 / theirs)
        first = [i for i in np.argsort(-z, kind="stable")[:count] if z[i] > 0]
        typical.append([{"term": str(words[i]), "z": round(float(z[i]), 2), "prompts": int(mine[i])} for i in first])
    return typical
