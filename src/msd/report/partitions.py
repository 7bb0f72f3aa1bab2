"""The card of a partition of classes: what is in each part, with real images, and which alike classes it takes apart.

Partitions of prompts have their own (``prompt_parts.py``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msd.data.archive import LabelledImages, open_half
from msd.data.grid import shown_classes
from msd.report.pictures import tile_of
from msd.report.read import Report, Row
from msd.report.style import PARTS

CLASSES_OF_A_PART = 12  # shown
EXAMPLES = 4  # images of a class
PAIRS = 6
TILE = 56  # about so many pixels


@dataclass(frozen=True)
class Part:
    """What one student owns.

    Attributes:
        student: from 1.
        classes: how many.
        images: real training images of these classes.
        shown: class → examples side by side as PNG.
    """

    student: int
    colour: str
    classes: int
    images: int
    shown: dict[int, bytes]


@dataclass(frozen=True)
class Pair:
    """Two classes of different parts that the judge confuses.

    Attributes:
        classes, students: of both; students from 1.
        share: mean probability that it gives to the one on real images of the other.
        pictures: one real image of each as PNG.
    """

    classes: tuple[int, int]
    students: tuple[int, int]
    share: float
    pictures: tuple[bytes, bytes]


@dataclass(frozen=True)
class PartitionCard:
    """One distinct partition.

    Attributes:
        variants: that use it.
        crossing: share of the judge's confusions that join classes of different parts, and what a random split would
            have on average; None where they were not measured.
        pairs: the strongest of those.
    """

    kind: str
    variants: list[str]
    parts: list[Part]
    crossing: tuple[float, float] | None
    pairs: list[Pair]


def distinct(rows: Sequence[Row], of_prompts: bool = False) -> list[tuple[Row, list[str]]]:
    """Each partition of classes among several students once: the first row that has it, and the names of all that do.

    Args:
        of_prompts: those of prompts instead.
    """
    found: dict[str, tuple[Row, list[str]]] = {}
    for row in rows:
        what = row.described if of_prompts else row.parts
        if row.partition and row.numbers["students"] > 1 and what and bool(row.described) == of_prompts:
            found.setdefault(str(what), (row, []))[1].append(row.name)
    return list(found.values())


def cards(report: Report) -> list[PartitionCard]:
    """The cards of a report, in the order of its rows."""
    kinds = {manifest.body["kind"]: manifest for manifest in report.manifests.values()}
    found = distinct(report.rows)
    if not found:
        return []
    data = open_half(kinds["data"], "train")
    others = report.manifests[report.floor].results.get("judge_takes_for")
    return [_card(row, names, data, others) for row, names in found]


def _card(row: Row, names: list[str], data: LabelledImages, others: Any) -> PartitionCard:
    parts = [
        Part(
            student=k + 1,
            colour=PARTS[k % len(PARTS)],
            classes=len(part),
            images=len(data.positions_of(part)),
            shown={
                c: _examples(data, c, EXAMPLES) for i in shown_classes(len(part), CLASSES_OF_A_PART) for c in [part[i]]
            },
        )
        for k, part in enumerate(row.parts)
    ]
    if others is None:
        return PartitionCard(row.partition, names, parts, None, [])
    owner = {c: k for k, part in enumerate(row.parts) for c in part}
    confusions = _symmetric(others)
    across = {pair: share for pair, share in confusions.items() if owner[pair[0]] != owner[pair[1]]}
    classes = len(owner)
    inside = sum(len(part) * (len(part) - 1) for part in row.parts) / (classes * (classes - 1))
    total = sum(confusions.values())
    pairs = [
        Pair(
            classes=(a, b),
            students=(owner[a] + 1, owner[b] + 1),
            share=share,
            pictures=(_examples(data, a, 1), _examples(data, b, 1)),
        )
        for (a, b), share in sorted(across.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]
    ]
    crossing = (sum(across.values()) / total, 1 - inside) if total else None
    return PartitionCard(row.partition, names, parts, crossing, pairs)


def _symmetric(others: Sequence[Sequence[tuple[int, float]]]) -> Mapping[tuple[int, int], float]:
    """(smaller class, larger class) → the mean of both directions."""
    found: dict[tuple[int, int], float] = {}
    for a, row in enumerate(others):
        for b, share in row:
            pair = (min(a, b), max(a, b))
            found[pair] = found.get(pair, 0.0) + share / 2
    return found


def _examples(data: LabelledImages, c: int, count: int) -> bytes:
    """The first images of a class side by side, as PNG; nothing where there are none."""
    chosen: NDArray[np.uint8] = data.images[data.positions_of([c])[:count]]
    tiles = [tile_of(image, TILE) for image in chosen]
    side = max((t.width for t in tiles), default=1)
    sheet = Image.new("RGB", (count * side, side), "white")
    for i, picture in enumerate(tiles):
        sheet.paste(picture, (i * side, 0))
    out = io.BytesIO()
    (sheet if data.images.shape[1] == 3 else sheet.convert("L")).save(out, format="PNG", optimize=True)
    return out.getvalue()
