"""The paper's tables 1 to 3 with our column, in LaTeX and Markdown.

The published figures and their sources are data (``published.yaml``). Ours come from the manifests of one experiment
that is finished; what it has not run is an en dash. Nothing is looked for elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from msd.config import Section, StudentVariant
from msd.errors import MissingFileError
from msd.plan import Plan
from msd.report import columns, summary
from msd.report.check import current_report
from msd.report.columns import NOTHING
from msd.store import Manifest, write_text

CLOSE = 3  # per cent of parameters by which a smaller student may differ from the paper's
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "–": "--",
    "−": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "↓": r"\ensuremath{\downarrow}",
}


class Ours(Section):
    """The variant that belongs into a row. A changed recipe belongs into none."""

    model: Literal["students", "teacher"] = "students"
    students: int = 1
    stages: list[str] = Field(default=["dm", "adm"])
    partition: str = "consecutive"
    images: float = 1
    fewer_parameters: int = 0
    stochastic: bool | None = None


class PublishedRow(Section):
    cells: list[str]
    fid: float
    source: str
    ours: Ours | None = None


class PublishedTable(Section):
    title: str
    experiments: list[str] | None = None
    any_stages: bool = False
    headings: list[str]
    notes: list[str] = Field(default=[])
    rows: list[PublishedRow]


class Published(Section):
    sources: dict[str, str]
    tables: dict[str, PublishedTable]


@dataclass(frozen=True)
class Table:
    """A table ready to be written; plain text, backticks mark names.

    Attributes:
        numeric: which columns are set flush right.
    """

    name: str
    title: str
    headings: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    notes: list[str]


def published() -> Published:
    """The figures that come with the package."""
    text = files("msd.report").joinpath("published.yaml").read_text(encoding="utf-8")
    return Published.model_validate(yaml.safe_load(text))


def write_tables(plan: Plan, folder: Path) -> list[Path]:
    """Write table1 to table3, each as .tex and .md.

    Raises:
        DamagedFileError: the experiment's report is of other settings or older results.
    """
    paths = []
    for table in tables(plan):
        for ending, text in (("tex", latex(table)), ("md", markdown(table))):
            paths.append(folder / f"{table.name}.{ending}")
            write_text(paths[-1], text)
    return paths


def tables(plan: Plan) -> list[Table]:
    """All tables; our column is empty where the experiment has no report yet. For errors see ``write_tables``."""
    numbers = None
    with contextlib.suppress(MissingFileError):
        numbers = current_report(plan).results["numbers"]
    content = published()
    return [_table(name, table, content.sources, plan, numbers) for name, table in content.tables.items()]


def _table(
    name: str, table: PublishedTable, sources: dict[str, str], plan: Plan, numbers: dict[str, Any] | None
) -> Table:
    experiment, notes = plan.experiment.experiment, list(table.notes)
    heading, ours = "ours", [NOTHING] * len(table.rows)
    if table.experiments is not None and experiment not in table.experiments:
        notes.append(f"Ours: experiment `{' or '.join(table.experiments)}`, not `{experiment}`.")
    elif numbers is not None:
        heading = f"ours, {columns.metric_label(numbers['metric'])} ↓"
        found, stages = _matches(table, plan, numbers)
        ours = [_named(row, numbers) if row else NOTHING for row in found]
        notes += _our_notes(numbers, experiment, {row["variant"] for row in found if row}, stages)
    return Table(
        name=name,
        title=table.title,
        headings=[*table.headings, "FID ↓", "source", heading],
        numeric=[all(map(_number, cells)) for cells in zip(*(r.cells for r in table.rows), strict=True)]
        + [True, False, True],
        rows=[
            [*row.cells, f"{row.fid:.2f}", sources[row.source], mine]
            for row, mine in zip(table.rows, ours, strict=True)
        ],
        notes=notes + [f"{NOTHING}: not run."] * (NOTHING in ours),
    )


def _named(row: dict[str, Any], numbers: dict[str, Any]) -> str:
    """A distance and the variant that has it."""
    return f"{summary.distance_text(row[numbers['metric']['name']], numbers)} (`{row['variant']}`)"


def _our_notes(numbers: dict[str, Any], experiment: str, used: set[str], stages: Sequence[str]) -> list[str]:
    """What one must know to read our column; nothing where it is empty."""
    if not used:
        return []
    name, together = numbers["metric"]["name"], f", stages {' + '.join(stages)}" if stages else ""
    notes = [f"Ours: experiment `{experiment}`, one training run each{together}."]
    if not name.startswith("fid"):
        notes.append(f"{name} is not FID: compare our values among themselves, and their order with the paper's.")
    return [*notes, f"Manifests, sha256: {', '.join(_digests(numbers['manifests'], used))}."]


def _matches(
    table: PublishedTable, plan: Plan, numbers: dict[str, Any]
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Our row for each published one, and the stages that all of them have where the table leaves them open.

    A table of any stages takes all its rows from variants of the same ones: those that fill the most rows.
    """
    known = [(row, ours) for row in numbers["rows"] if (ours := _describe(row, plan)) is not None]

    def fill(stages: list[str] | None) -> list[dict[str, Any] | None]:
        wanted = [
            row.ours.model_copy(update={"stages": stages}) if row.ours and stages else row.ours for row in table.rows
        ]
        return [next((row for row, ours in known if want and _equal(want, ours)), None) for want in wanted]

    if not table.any_stages:
        return fill(None), []
    choices = [["dm"], ["dm", "adm"]]
    best = max(choices, key=lambda stages: sum(row is not None for row in fill(stages)))
    return fill(best), best


def _describe(row: dict[str, Any], plan: Plan) -> Ours | None:
    """A variant in the terms of the published rows; None where it has none."""
    variant = plan.experiment.variants[row["variant"]]
    if row["model"] == "teacher":
        sampler = plan.variants[row["variant"]].bundle.settings["sampler"]
        return Ours(model="teacher", stochastic=sampler.get("S_churn", 0) > 0)
    if not isinstance(variant, StudentVariant) or row["changes"]:
        return None
    teacher = Manifest.read(plan.teacher.manifest).results["parameters"]
    return Ours(
        students=variant.students,
        stages=list(variant.stages),
        partition=variant.partition.kind if variant.students > 1 else "consecutive",
        images=variant.images,
        fewer_parameters=round(100 * (1 - row["parameters_per_student"] / teacher)),
    )


def _equal(wanted: Ours, found: Ours) -> bool:
    if wanted.model == found.model == "teacher":
        return wanted.stochastic in (None, found.stochastic)
    exact = {"model", "students", "stages", "partition", "images"}
    near = abs(wanted.fewer_parameters - found.fewer_parameters) <= (CLOSE if wanted.fewer_parameters else 0)
    return near and wanted.model_dump(include=exact) == found.model_dump(include=exact)


def _digests(manifests: dict[str, str], variants: set[str]) -> Iterator[str]:
    for path, sha256 in manifests.items():
        name = Path(path).parent.name.rpartition("-")[0]
        if name in variants:
            yield f"{name} `{sha256[:8]}`"


def _number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def markdown(table: Table) -> str:
    """A table in Markdown, its notes below."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = line(["--:" if numeric else ":--" for numeric in table.numeric])
    body = "\n".join([line(table.headings), rule, *map(line, table.rows)])
    return "\n\n".join([f"**{table.title}**", body, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """A table as a LaTeX float that needs no package."""
    columns_of = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\label{{tab:msd-{table.name}}}",
        rf"\begin{{tabular}}{{{columns_of}}}",
        r"\hline",
        _latex_line(table.headings),
        r"\hline",
        *map(_latex_line, table.rows),
        r"\hline",
        r"\end{tabular}",
        *(rf"\par\smallskip{{\footnotesize {escape(note)}}}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(text: str) -> str:
    """Plain text for LaTeX; names in backticks become typewriter."""
    parts = ["".join(LATEX.get(sign, sign) for sign in part) for part in text.split("`")]
    return "".join(rf"\texttt{{{part}}}" if i % 2 else part for i, part in enumerate(parts))
