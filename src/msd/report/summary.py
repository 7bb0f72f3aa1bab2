"""Sentences about the numbers: who is best, how far from the floor, and each fair comparison of many students with one.

Whatever the numbers say is said; nothing here knows which row ought to win. Backticks mark names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msd.report import columns

OF_TRAINING = "training images"
FLOORS = {  # what a floor is the distance of, and to what; and what students are compared with
    OF_TRAINING: ("Real training images", "the held-out ones", "held-out real images"),
    "half of the reference": ("Every second of the reference images", "the others", "the reference images"),
}
SAME = 0.01  # relative difference of two numbers of images that counts as equal


@dataclass(frozen=True)
class Comparison:
    """One variant of many students against one student of the same network and recipe.

    Attributes:
        equal: what both have alike: ``each`` (images per student) or ``in all`` (images of all students).
    """

    many: Mapping[str, Any]
    one: Mapping[str, Any]
    equal: str


def comparisons(numbers: Mapping[str, Any]) -> list[Comparison]:
    """Every pair of rows that differs in the number of students alone, at equal images each or in all."""
    students = [row for row in numbers["rows"] if row["model"] != "teacher"]
    found = []
    for many in (row for row in students if row["students"] > 1):
        for one in (row for row in students if row["students"] == 1):
            if any(many[key] != one[key] for key in ("network", "stages", "changes")):
                continue
            for equal, key in (("each", "images_per_student"), ("in all", "images_total")):
                if many[key] and one[key] and abs(many[key] / one[key] - 1) <= SAME:
                    found.append(Comparison(many, one, equal))
    return found


def compare(comparison: Comparison, numbers: Mapping[str, Any]) -> str:
    """One sentence that says who is better, by how much, and at what cost."""
    many, one = comparison.many, comparison.one
    mine, other = _distance(many, numbers), _distance(one, numbers)
    if distance_text(mine, numbers) == distance_text(other, numbers):
        verdict = f"both score {distance_text(mine, numbers)}"
    else:
        word = "better" if mine < other else "worse"
        share = f"{100 * abs(mine / other - 1):.0f} % {word}"
        verdict = f"{distance_text(mine, numbers)} against {distance_text(other, numbers)}, {share}"
    same = many["images_per_student" if comparison.equal == "each" else "images_total"]
    cost = "the same" if comparison.equal == "in all" else f"{many['images_total'] / one['images_total']:.2g} times the"
    return (
        f"{many['students']} students (`{many['variant']}`) against one (`{one['variant']}`), "
        f"{columns.thousands(same)} images {comparison.equal} ({cost} training compute): {verdict}."
    )


def paragraph(numbers: Mapping[str, Any]) -> str:
    """The result in a few sentences."""
    rows = numbers["rows"]
    students = [row for row in rows if row["model"] != "teacher"]
    teacher = next((row for row in rows if row["model"] == "teacher"), None)
    if not students:
        return "This experiment has no student rows; the table shows the teacher alone."
    best = min(students, key=lambda row: _distance(row, numbers))
    of, _, real = FLOORS[numbers["floor"].get("of", OF_TRAINING)]
    floor = numbers["floor"]["metrics"][numbers["metric"]["name"]]
    said = [
        f"Of {_count(len(students), 'student row')}, `{best['variant']}` comes closest to {real}: "
        f"a Fréchet distance of {distance_text(_distance(best, numbers), numbers)} "
        f"({numbers['metric']['name']}, lower is better) with {_count(best['students'], 'student')} "
        f"and {_count(best['nfe'], 'network evaluation')} per image."
    ]
    if teacher:
        distance = _distance(teacher, numbers)
        beaten = "which it beats" if _distance(best, numbers) < distance else "which no student reaches"
        said.append(
            f"The teacher scores {distance_text(distance, numbers)} with {teacher['nfe']} evaluations, {beaten}; "
            f"one image takes the teacher {columns.milliseconds(teacher['latency_p50_ms'])} "
            f"and the student {columns.milliseconds(best['latency_p50_ms'])}."
        )
    said.append(
        f"{of} score {distance_text(floor, numbers)} in the same way, the floor: "
        f"the best student is {distance_text(_distance(best, numbers) - floor, numbers)} above it."
    )
    return " ".join(said + _verdict(numbers))


def _verdict(numbers: Mapping[str, Any]) -> list[str]:
    """The question of the paper, answered for the first variant of many students that has a fair opponent."""
    found = comparisons(numbers)
    if not found:
        return []
    many = max(found, key=lambda c: sum(other.many is c.many for other in found)).many
    fair = [c for c in found if c.many is many]
    mine, said = _distance(many, numbers), []
    for equal, phrase in (("each", "the same images for each student"), ("in all", "the same images in all")):
        ones = [c.one for c in fair if c.equal == equal]
        if ones:
            one = min(ones, key=lambda row: _distance(row, numbers))
            other = _distance(one, numbers)
            alike = distance_text(mine, numbers) == distance_text(other, numbers)
            word = "as good as" if alike else "better than" if mine < other else "worse than"
            said.append(f"with {phrase} they are {word} one (`{one['variant']}`, {distance_text(other, numbers)})")
    winner = min([many, *(c.one for c in fair)], key=lambda row: _distance(row, numbers))
    return [
        f"Do {many['students']} students (`{many['variant']}`, {distance_text(mine, numbers)}) pay off? "
        f"{'; '.join(said).replace('with', 'With', 1)}. Best of these: `{winner['variant']}`."
    ]


def _distance(row: Mapping[str, Any], numbers: Mapping[str, Any]) -> float:
    return row[numbers["metric"]["name"]]


def distance_text(value: float, numbers: Mapping[str, Any]) -> str:
    """A distance with as many decimals as the table's column."""
    return columns.distance(value, [_distance(row, numbers) for row in numbers["rows"]])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
