"""The card of a partition of prompts: how large and how alike its parts are, their words and some of their prompts.

All of it was measured by the partition's stage (``partition/text_report.py``); here it becomes text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msd.report.partitions import distinct
from msd.report.read import Row
from msd.report.style import PARTS

EXAMPLES = 4  # prompts of a part
SMALLEST, LARGEST = 0.9, 2.1  # rem, a word's letters
SURE = 2.0  # a z score that chance seldom gives: a page of lesser ones has no large word
CELLS = ["prompts", "share", "distance within", "of one part's distance"]


@dataclass(frozen=True)
class Word:
    """A word that is typical of a part.

    Attributes:
        prompts: of the part that hold it.
        size: of its letters, by its z score, in rem.
    """

    text: str
    prompts: int
    size: float


@dataclass(frozen=True)
class PromptPart:
    """What one student owns.

    Attributes:
        student: from 1.
        cells: of the table.
    """

    student: int
    colour: str
    cells: list[str]
    words: list[Word]
    examples: list[str]


@dataclass(frozen=True)
class PromptCard:
    """One distinct partition of prompts.

    Attributes:
        variants: that use it.
        totals: rows of the table under the parts', each with its heading.
        stability: whether another seed gives the same parts; empty where it was not measured.
        largest_z: of its words.
    """

    kind: str
    variants: list[str]
    parts: list[PromptPart]
    totals: list[tuple[str, list[str]]]
    stability: str
    largest_z: float


def cards(rows: Sequence[Row]) -> list[PromptCard]:
    """The cards of a report's rows, in their order; words are as large as their z score, on one scale for all."""
    found = [(names, row.described) for row, names in distinct(rows, of_prompts=True) if row.described]
    top = max((_largest_z(described["description"]) for _, described in found), default=0.0)
    return [_card(names, described["description"], described["stability"], top) for names, described in found]


def _card(names: list[str], description: dict[str, Any], stability: dict[str, Any] | None, top: float) -> PromptCard:
    one, sizes = description["distance_of_one_part"], description["sizes"]
    parts = [
        PromptPart(
            student=k + 1,
            colour=PARTS[k % len(PARTS)],
            cells=_cells(part["size"], part["share"], part["within_part_distance"], one),
            words=[Word(term["term"], term["prompts"], _size(term["z"], top)) for term in part["terms"]],
            examples=part["examples"][:EXAMPLES],
        )
        for k, part in enumerate(description["parts"])
    ]
    unequal = f"{description['largest_minus_smallest_points']:.3f} points"
    total = description["prompts"]
    totals = [
        ("largest − smallest", [f"{max(sizes) - min(sizes):,}", unequal, "", ""]),
        ("all in parts", _cells(total, 1.0, description["within_part_distance"], one)),
        ("all as one part", _cells(total, 1.0, one, one)),
    ]
    agreement = _agreement(stability) if stability else ""
    return PromptCard(description["kind"], names, parts, totals, agreement, _largest_z(description))


def _largest_z(description: dict[str, Any]) -> float:
    return max((term["z"] for part in description["parts"] for term in part["terms"]), default=0.0)


def _size(z: float, top: float) -> float:
    return round(SMALLEST + (LARGEST - SMALLEST) * z / max(top, SURE), 2)


def _cells(size: int, share: float, distance: float, one: float) -> list[str]:
    ratio = f"{100 * distance / one:.1f} %" if one else ""
    return [f"{size:,}", f"{100 * share:.2f} %", f"{distance:.3f}", ratio]


def _agreement(stability: dict[str, Any]) -> str:
    """In one sentence, whether another seed gives the same parts."""
    if not stability["seeds"]:
        return "There is no seed: the same prompts always give the same parts."
    seeds = f"seeds {', '.join(map(str, stability['seeds']))}, each on the same {stability['prompts']:,} of the prompts"
    if stability["mean"] is None:
        return f"Of {seeds}, at least one cannot make the parts equally large."
    mean, least = (f"{stability[key]:z.2f}" for key in ("mean", "min"))  # z: not −0.00
    agreement = f"{mean} on average, {least} at least"
    return f"Parts of {seeds}, agree with an adjusted Rand index of {agreement}: 1 is the same, 0 as by chance."
