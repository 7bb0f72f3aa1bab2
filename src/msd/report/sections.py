"""The sections of report.html, in order. Each takes the content and gives a section, or nothing where there is none.

To add one: write a function beside these (or in a module of its own), a template in ``templates/sections``, and put
the function into ``SECTIONS``. A section of figures alone is ``_pictures(…)``; its figures carry the section's id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from msd.report import broken_down, columns, cost, partitions, prompt_parts, summary, table
from msd.report.breakdown import Broken
from msd.report.claims_page import Line
from msd.report.cost import Costs
from msd.report.markup import fill
from msd.report.origins import Origin, Origins
from msd.report.read import Report
from msd.report.style import Figure, looks


@dataclass(frozen=True)
class Content:
    """All that sections are made of.

    Attributes:
        figures: each names its section.
        origins: of the table's numbers.
        broken: the breakdown of each variant that has one.
        claims: the first section; without any there is none.
    """

    report: Report
    figures: list[Figure]
    origins: Origins
    broken: list[Broken]
    costs: Costs
    claims: list[Line]

    def shown_in(self, section: str) -> list[Figure]:
        """The figures of a section."""
        return [figure for figure in self.figures if figure.section == section]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: its address on the page.
        title: its heading.
        body: what stands under the heading.
        short: its name in the navigation.
    """

    id: str
    title: str
    body: Markup
    short: str


@dataclass(frozen=True)
class Card:
    """One of the few numbers to see first; a click shows where it comes from, if it has an origin."""

    value: str
    what: str
    whose: str
    origin: Origin | None = None


def cards(content: Content) -> list[Card]:
    """The numbers under the page's title."""
    numbers = content.report.numbers
    metric = numbers["metric"]
    name = metric["name"]
    students = [(i, row) for i, row in enumerate(numbers["rows"]) if row["model"] != "teacher"]
    teachers = [(i, row) for i, row in enumerate(numbers["rows"]) if row["model"] == "teacher"]
    found = []
    if students:
        at, best = min(students, key=lambda pair: pair[1][name])
        value = summary.distance_text(best[name], numbers)
        found.append(Card(value, f"{name}, best student", best["variant"], content.origins.of(at, name, metric)))
    for at, teacher in teachers[:1]:
        value, origin = summary.distance_text(teacher[name], numbers), content.origins.of(at, name, metric)
        found.append(Card(value, f"{name}, teacher", f"NFE {teacher['nfe']}", origin))
    value = summary.distance_text(numbers["floor"]["metrics"][name], numbers)
    found.append(Card(value, f"{name}, floor", "real images", content.origins.floor))
    if students and teachers:
        speed = teachers[0][1]["latency_p50_ms"] / best["latency_p50_ms"]
        found.append(Card(f"{speed:.{0 if speed >= 10 else 1}f} ×", "faster than the teacher", best["variant"]))
    return found


def claims(content: Content) -> Section | None:
    """What the paper says, and what was found here. Not there without claims."""
    if not content.claims:
        return None
    return Section("claims", "The paper's claims", fill("sections/claims.html.j2", claims=content.claims), "Claims")


def ablation(content: Content) -> Section:
    """The table, every number with its way back, and what one must know to read it."""
    report, numbers = content.report, content.report.numbers
    body = columns.cells(numbers["rows"], numbers["metric"])
    lines = [
        (row, list(zip(cells, found, strict=True)))
        for row, cells, found in zip(report.rows, body, content.origins.cells, strict=True)
    ]
    return Section(
        "table",
        "Ablation table",
        fill(
            "sections/table.html.j2",
            headings=[column.heading for column in columns.columns(numbers["metric"])],
            lines=lines,
            looks=looks(report.rows),
            notes=table.notes(numbers),
            comparisons=[summary.compare(c, numbers) for c in summary.comparisons(numbers)],
        ),
        "Table",
    )


def costs(content: Content) -> Section:
    """What a variant costs, to use and to train, and what its quality is for that."""
    report = content.report
    body = fill(
        "sections/cost.html.j2",
        figures=content.shown_in("cost"),
        looks=looks(report.rows),
        headings=cost.headings(content.costs),
        rows=list(zip(report.rows, cost.cells(content.costs), strict=True)),
        notes=cost.notes(content.costs),
    )
    return Section("cost", "Quality against cost", body, "Cost")


def who(content: Content) -> Section | None:
    """Every student on every part and class, and what its images have in common with the training data."""
    if not content.broken:
        return None
    figures = content.shown_in("who")
    body = fill(
        "sections/who.html.j2",
        looks=looks(content.report.rows),
        sentences=[broken_down.sentence(b) for b in content.broken if b.is_split],
        general=[figure for figure in figures if not figure.variant],
        pictures=[figure for figure in figures if figure.variant],
        near=[(b.row.name, broken_down.near_row(b)) for b in content.broken],
        near_images=content.broken[0].results["nearest"]["images"],
    )
    return Section("who", "Who is good at what", body, "Who is good at what")


def partition(content: Content) -> Section | None:
    """Which classes each student owns. Not there where no variant has several."""
    found = partitions.cards(content.report)
    if not found:
        return None
    body = fill("sections/partition.html.j2", cards=found, figures=content.shown_in("partition"))
    return Section("partition", "Which student owns which class", body, "Partition")


def prompts(content: Content) -> Section | None:
    """Which prompts each student owns. Not there where classes are split."""
    found = prompt_parts.cards(content.report.rows)
    if not found:
        return None
    body = fill("sections/prompts.html.j2", cards=found, headings=prompt_parts.CELLS, sure=prompt_parts.SURE)
    return Section("prompts", "Which student owns which prompt", body, "Prompts")


def galleries(content: Content) -> Section:
    """Each variant's images; folded up, but for the best student's."""
    report = content.report
    distances = {row.name: row.numbers[report.numbers["metric"]["name"]] for row in report.rows if not row.is_teacher}
    body = fill(
        "sections/galleries.html.j2",
        galleries=content.shown_in("galleries"),
        best=min(distances, key=lambda name: distances[name], default=None),
        looks=looks(report.rows),
    )
    return Section("galleries", "Galleries", body, "Galleries")


def provenance(content: Content) -> Section:
    """Where everything comes from."""
    report = content.report
    body = fill(
        "sections/provenance.html.j2",
        provenance=report.provenance,
        origins=report.origins,
        manifests=[(path, manifest.body, report.sha256[path]) for path, manifest in report.manifests.items()],
    )
    return Section("provenance", "Provenance", body, "Provenance")


def _pictures(id: str, title: str, short: str) -> Callable[[Content], Section | None]:
    """A section of figures alone; not there without them."""

    def make(content: Content) -> Section | None:
        shown = content.shown_in(id)
        return Section(id, title, fill("sections/pictures.html.j2", figures=shown), short) if shown else None

    return make


SECTIONS: tuple[Callable[[Content], Section | None], ...] = (
    claims,
    _pictures("toy", "The idea in two dimensions", "Idea"),
    _pictures("glance", "Every variant at a glance", "At a glance"),
    ablation,
    costs,
    partition,
    prompts,
    who,
    _pictures("figures", "More figures", "Figures"),
    galleries,
    provenance,
)
