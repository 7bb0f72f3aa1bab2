"""The page's section of a partition of prompts, from a manifest made by hand."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import re
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import experiment, make_results

from msd.plan import Plan
from msd.report import cost, figures, prompt_parts
from msd.report.origins import origins
from msd.report.page import render
from msd.report.read import Row, read
from msd.report.sections import Content
from msd.store import Manifest, write_text

STUDENTS = 8
EVIL = "<script>alert(1)</script> & \u202ea cat"
STABLE = {"seeds": [3, 4, 5], "prompts": 20_000, "mean": 0.981, "min": 0.95}


def description() -> dict[str, Any]:
    """Eight parts of 16,004 prompts; the first has no word, the last has an odd one."""
    sizes = [2000] * 7 + [2004]
    parts = [
        {
            "size": size,
            "share": size / sum(sizes),
            "within_part_distance": 0.6,
            "examples": [f"prompt {i} of part {k}" for i in range(8)],
            "terms": [{"term": f"word{k}{i}", "z": 10.0 * k - i, "prompts": 1234} for i in range(3 if k else 0)],
        }
        for k, size in enumerate(sizes)
    ]
    parts[-1]["terms"][1]["term"] = "long" * 100
    parts[-1]["examples"][0] = EVIL
    return {
        "kind": "text-kmeans",
        "students": STUDENTS,
        "prompts": sum(sizes),
        "sizes": sizes,
        "shares": [size / sum(sizes) for size in sizes],
        "largest_minus_smallest_points": 0.025,
        "within_part_distance": 0.6,
        "distance_of_one_part": 0.8,
        "parts": parts,
    }


def split_prompts(folder: Path, **results: Any) -> Plan:
    """Results of an experiment whose students own prompts, with that manifest of its partition."""
    variants = {"msd8": {"students": STUDENTS, "stages": ["dm"]}, "single": {"students": 1, "stages": ["dm"]}}
    plan = make_results(folder, experiment({"teacher": {"model": "teacher"}}))
    plan = Plan(experiment(variants), results=folder)
    node = plan.variants["msd8"].partition
    assert node is not None
    path = node.manifest.parent / "partition.json"
    write_text(path, "{}")
    Manifest.write(
        node.manifest,
        kind="partition",
        settings={"students": STUDENTS, "kind": "text-kmeans", "seed": 3},
        inputs=node.input_paths,
        files={"partition": path},
        results={"parts": [[k, k + 8] if k < 2 else [k] for k in range(STUDENTS)], **results},
    )
    return make_results(folder, experiment(variants))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """To read only."""
    return split_prompts(tmp_path_factory.mktemp("results"), description=description(), stability=STABLE)


@pytest.fixture(scope="module")
def page(plan: Plan) -> str:
    """The page without figures."""
    report = read(plan)
    return render(Content(report, [], origins(report), [], cost.read(plan, report), []))


@pytest.fixture
def section(page: str) -> str:
    return page.partition('<section id="prompts">')[2].partition("</section>")[0]


def row_of(plan: Plan, **described: Any) -> Row:
    """The row of several students, whose partition says something else of itself."""
    row = read(plan).rows[0]
    assert row.described is not None
    return dataclasses.replace(row, described=row.described | described)


class Lists(html.parser.HTMLParser):
    """The items of lists, by the list's label, and the styles in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.items: dict[str, list[list[str]]] = {}
        self.styles: list[str] = []
        self.label = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "ul":
            self.label = dict(attrs).get("aria-label") or ""
        if tag == "li":
            self.items.setdefault(self.label, []).append([])
        self.styles += [value or "" for name, value in attrs if name == "style" and "font-size" in (value or "")]

    def handle_endtag(self, tag: str) -> None:
        self.label = "" if tag == "ul" else self.label

    def handle_data(self, data: str) -> None:
        if self.label and data.strip():
            self.items[self.label][-1].append(data)


def test_the_page_shows_parts_of_prompts_and_none_of_classes(
    plan: Plan, page: str, section: str, tmp_path: Path
) -> None:
    assert '<a href="#prompts">Prompts</a>' in page
    assert 'id="partition"' not in page
    assert figures.partition(read(plan), tmp_path / "partition.png") is None
    assert "text-kmeans, 8 students: msd8</h3>" in section  # the single student has one part, so no card


def test_the_table_has_each_part_and_what_to_compare_with(section: str) -> None:
    rows = [re.findall(r">([^<>]+)</t[hd]>", line) for line in section.splitlines() if line.startswith("<tr>")]
    assert [row[0] for row in rows[:STUDENTS]] == [f"student {k}" for k in range(1, STUDENTS + 1)]
    assert rows[0][1:] == ["2,000", "12.50 %", "0.600", "75.0 %"]
    assert rows[STUDENTS:] == [
        ["largest − smallest", "4", "0.025 points"],
        ["all in parts", "16,004", "100.00 %", "0.600", "75.0 %"],
        ["all as one part", "16,004", "100.00 %", "0.800", "100.0 %"],
    ]


def test_words_are_a_list_with_counts_and_as_large_as_they_are_sure(section: str) -> None:
    found = Lists(section)
    assert found.items["Typical words of student 3"] == [["word20", "1,234"], ["word21", "1,234"], ["word22", "1,234"]]
    assert "Typical words of student 1" not in found.items
    assert "No word is more frequent here than in the other parts." in section
    sizes = [float(re.sub(r"[^\d.]", "", style)) for style in found.styles]
    assert len(sizes) == 3 * (STUDENTS - 1)
    assert max(sizes) == sizes[-3] == prompt_parts.LARGEST  # z 70
    assert sizes[:3] == sorted(sizes[:3], reverse=True)
    assert min(sizes) > prompt_parts.SMALLEST
    assert found.items["Typical words of student 8"][1] == ["long" * 7 + "l…", "1,234"]


def test_prompts_are_few_and_escaped(page: str, section: str) -> None:
    found = Lists(section).items
    assert found["Prompts of student 1"] == [[f"prompt {i} of part 0"] for i in range(prompt_parts.EXAMPLES)]
    assert "".join(found["Prompts of student 8"][0]) == EVIL
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; " in section
    assert "<script" not in page


@pytest.mark.parametrize(
    ("stability", "expected"),
    [
        (STABLE, "seeds 3, 4, 5, each on the same 20,000 of the prompts, agree.* 0.98 on average, 0.95 at least: 1 is"),
        (STABLE | {"mean": -1e-5, "min": -2e-5}, " 0.00 on average, 0.00 at least"),
        (STABLE | {"mean": None, "min": None}, "at least one cannot make the parts equally large"),
        ({"seeds": [], "prompts": 0, "mean": 1.0, "min": 1.0}, "There is no seed"),
        (None, "^$"),
    ],
)
def test_stability_is_told_in_words(plan: Plan, stability: dict[str, Any] | None, expected: str) -> None:
    (card,) = prompt_parts.cards([row_of(plan, stability=stability)])
    assert re.search(expected, card.stability)


def test_words_that_may_be_there_by_chance_are_small(plan: Plan) -> None:
    by_chance = description()
    for part in by_chance["parts"]:
        part["terms"] = [{"term": "word", "z": 0.5, "prompts": 1}]
    sizes = {
        word.size for card in prompt_parts.cards([row_of(plan, description=by_chance)]) for word in all_words(card)
    }
    assert sizes == {1.2}
    assert prompt_parts.cards([row_of(plan, description=by_chance), *read(plan).rows])[0].largest_z == 0.5


def all_words(card: prompt_parts.PromptCard) -> list[prompt_parts.Word]:
    return [word for part in card.parts for word in part.words]


def test_rows_of_one_partition_share_a_card_and_words_one_scale(plan: Plan) -> None:
    row = row_of(plan)
    other = dataclasses.replace(row, parts=[[1], [0], *row.parts[2:]], described=small_words(row))
    same = dataclasses.replace(row, numbers=row.numbers | {"variant": "other"})
    first, second = prompt_parts.cards([row, other, same])
    assert first.variants == ["msd8", "other"]
    assert max(word.size for word in all_words(second)) < 1.1
    assert prompt_parts.cards([dataclasses.replace(row, described=None)]) == []


def small_words(row: Row) -> dict[str, Any]:
    """What the row's partition says of itself, with a tenth of its z scores."""
    found = copy.deepcopy(row.described)
    assert found is not None
    for part in found["description"]["parts"]:
        for term in part["terms"]:
            term["z"] /= 10
    return found
