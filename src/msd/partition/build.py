"""Build a partition from its settings and write it with its balance report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd.partition import parts as split
from msd.store import Manifest, write_json

PARTITION_SCHEMA = 1


def build_partition(
    out: Path,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    num_classes: int,
    embeddings: NDArray[np.float32] | None,
) -> Manifest:
    """Write ``partition.json`` beside the manifest ``out``.

    Args:
        out: the manifest to write.
        settings: kind, students and what the kind needs (see ``config.PartitionSpec``).
        inputs: role → manifest read.
        num_classes: of the data.
        embeddings: (num_classes, E) the teacher's class embeddings; None where the kind needs none.

    Raises:
        PartitionError: more students than classes, or parts that do not cover the classes exactly once.
    """
    kind, students = settings["kind"], settings["students"]
    where = f"partition {kind}, {students} students"
    split.check_count(students, num_classes, where)
    if kind == "consecutive":
        parts = split.consecutive(num_classes, students)
    elif kind == "random":
        parts = split.random(num_classes, students, settings["seed"])
    elif kind == "explicit":
        parts = [sorted(part) for part in settings["parts"]]
    else:
        assert embeddings is not None
        parts = split.balanced_kmeans(embeddings, students, settings["seed"])
    split.check(parts, num_classes, where)
    sizes = [len(part) for part in parts]
    balance = {
        "sizes": sizes,
        "largest_minus_smallest": max(sizes) - min(sizes),
        "within_part_distance": None if embeddings is None else within_part_distance(embeddings, parts),
    }
    path = out.parent / "partition.json"
    write_json(
        path,
        {
            "schema": PARTITION_SCHEMA,
            "kind": kind,
            "students": students,
            "num_classes": num_classes,
            "parts": parts,
            "balance": balance,
        },
    )
    return Manifest.write(
        out,
        kind="partition",
        settings=settings,
        inputs=inputs,
        files={"partition": path},
        results={"parts": parts, **balance},
    )


def within_part_distance(embeddings: NDArray[np.float32], parts: split.Parts) -> float:
    """Root mean squared distance of class embeddings from their part's mean: small where parts are alike inside."""
    squares = [((embeddings[part] - embeddings[part].mean(0)) ** 2).sum(1) for part in parts]
    return float(np.sqrt(np.concatenate(squares).mean()))
