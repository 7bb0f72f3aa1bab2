"""docs/claims.md: every claim, what the paper says and what was found here. Rendered from docs/claims/ alone.

The same folder gives the same bytes, so a reader can check that no number on the page was typed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msd.errors import DamagedFileError, MissingFileError
from msd.intervals import Interval
from msd.plan import Plan
from msd.report import columns, read
from msd.report.claims import LIST, Claims, Comparison, Judged, Row, keep, read_claims
from msd.report.claims_figure import draw
from msd.report.table import metric_note
from msd.store import Manifest, read_json, write_text
from msd.toy.summary import summary as toy_summary

FOLDER, PAGE = Path("docs/claims"), Path("docs/claims.md")

HEAD = """# The paper's claims, put to the test

Written by `snakemake claims` from the manifests in [claims/](claims/), which hold every number with the settings, the
machine and the code that made it; `msd report claims --check` rebuilds this page from them byte for byte.

A claim is a list of pairs of variants of which the first should have the smaller distance (lower is better). For each
pair: the two means over the training seeds, and the difference with its 95 % confidence interval (Student's t, paired
by seed). A claim **holds** if every interval lies below zero, it **does not hold** if one lies above; otherwise it is
**undecided**. Three seeds make wide intervals. With one seed there is none, and the row says so.
"""


@dataclass(frozen=True)
class Line:
    """One claim in words; names stand in backticks.

    Attributes:
        here: what was found, pair by pair.
        note: what one must know to read it.
    """

    number: str
    claim: str
    paper: str
    here: list[str]
    verdict: str
    note: str = ""


def build(plan: Plan, folder: Path = FOLDER, page: Path = PAGE) -> Claims:
    """Keep the evaluations of a plan and render the claims of all data sets in ``folder``.

    Where all that the claims need is evaluated here, their own manifest is written last.

    Raises:
        MissingFileError, DamagedFileError: see ``keep``.
    """
    kept = keep(plan, folder / plan.experiment.experiment)
    write_text(page, render(_all(folder), page.parent))
    draw(kept, page.parent / _picture(kept))
    if all(path.exists() for path in plan.claim_inputs):
        Manifest.write(
            plan.claims,
            kind="claims",
            settings={"claims": [judged.claim.model_dump(mode="json") for judged in kept.judged]},
            inputs={str(path.relative_to(plan.root)): path for path in plan.claim_inputs},
            files={"page": page, "list": kept.folder / LIST},
        )
    return kept


def check_page(folder: Path = FOLDER, page: Path = PAGE) -> int:
    """Check that the page is what the manifests give; returns their number.

    Raises:
        DamagedFileError: it is not.
        MissingFileError: there is no page, or a manifest is gone.
    """
    claims = _all(folder)
    if not page.exists():
        raise MissingFileError("There is no page of claims.", where=str(page), todo="Run `snakemake claims`.")
    if page.read_text(encoding="utf-8") != render(claims, page.parent):
        raise DamagedFileError(
            "The page of claims is not the one that its manifests give.",
            where=str(page),
            why="it was changed by hand, or the manifests are newer",
            todo="Write it anew with `snakemake claims`.",
        )
    return sum(len(row.manifests) for c in claims for row in c.rows.values())


def _all(folder: Path) -> list[Claims]:
    lists = sorted(folder.glob(f"*/{LIST}"))
    if not lists:
        raise MissingFileError("No claims were put to the test yet.", where=str(folder), todo="Run `snakemake claims`.")
    return [read_claims(path.parent) for path in lists]


def render(claims: Sequence[Claims], beside: Path) -> str:
    """The page as Markdown; links are relative to the folder ``beside``."""
    parts = [HEAD, _summary(claims)]
    for one in claims:
        link = one.folder.relative_to(beside).as_posix()
        picture = (
            f"![Every pair with its interval]({_picture(one)})\n\n"
            "*The pairs above: distance of the first over that of the second. Green: the first is better, red: worse; "
            "grey: the interval includes one, or there is one seed.*\n"
        )
        parts += [f"## {one.experiment}\n", picture, _metric(one), _rows(one, link), _map(one)]
    toy = beside / "claims" / "toy2d.json"
    if toy.exists():
        picture = "![Best number of students by width and budget](images/toy2d-map.png)\n"
        parts += ["## The 2-D toy\n", "\n".join(toy_summary(read_json(toy))), "", picture]
    return "\n".join(parts)


def verdict_text(judged: Judged) -> str:
    """The verdict, and how many seeds there are if fewer than asked for."""
    found = [c.difference.seeds for c in judged.comparisons if c.difference]
    short = found and min(found) < judged.claim.seeds
    return judged.verdict + (f" ({min(found)} of {judged.claim.seeds} seeds)" if short else "")


def here(one: Claims, comparison: Comparison, seeds: int) -> str:
    """What was found of one pair, as text."""
    first, second = (one.rows.get(name) for name in (comparison.first, comparison.second))
    if first is None or second is None or comparison.difference is None:
        return f"`{comparison.first}` v. `{comparison.second}`: not run"
    left, right = (Interval.of(list(row.distances(seeds).values())) for row in (first, second))
    means = f"`{first.name}` {_number(left.mean)} v. `{second.name}` {_number(right.mean)}"
    return f"{means}: {_signed(comparison.difference)}"


def _picture(one: Claims) -> str:
    return f"images/claims-{one.experiment}.png"


def lines_of(plan: Plan, folder: Path = FOLDER) -> list[Line]:
    """The claims on a plan's data, as far as they are kept; no lines where none are."""
    kept = folder / plan.experiment.experiment
    return _lines(read_claims(kept)) if (kept / LIST).exists() else []


def _lines(one: Claims) -> list[Line]:
    return [
        Line(
            judged.claim.number,
            judged.claim.claim,
            judged.claim.paper,
            [here(one, c, judged.claim.seeds) for c in judged.comparisons],
            verdict_text(judged),
            judged.claim.note,
        )
        for judged in one.judged
    ]


def _summary(claims: Sequence[Claims]) -> str:
    rows = [(line, one.experiment) for one in claims for line in _lines(one)]
    rows.sort(key=lambda pair: (_order(pair[0].number), pair[1]))
    lines = ["| | claim | paper | data | here | |", "| :-- | :-- | :-- | :-- | :-- | :-- |"]
    for line, data in rows:
        texts = [line.number, line.claim, line.paper, data, "<br>".join(line.here), f"**{line.verdict}**"]
        lines.append(f"| {' | '.join(texts)} |")
    noted = [f"- {line.number}, {data}: {line.note}" for line, data in rows if line.note]
    lines += ["", *noted] if noted else []
    return "\n".join(lines) + "\n"


def _metric(one: Claims) -> str:
    machines = read.machines([m for row in one.rows.values() for m in row.manifests.values()])
    return (
        f"{metric_note(one.metric)} Evaluated on {'; '.join(machines)}. Mean over the seeds ± half of the 95 % "
        "interval; each seed links to its manifest. Latency: median of one image, all variants in turn.\n"
    )


def _rows(one: Claims, link: str) -> str:
    lines = [
        "| variant | students | parameters each | images each | images in all | distance ↓ | precision ↑ | recall ↑ | "
        "asked class ↑ | latency | seeds |",
        "| :-- " + "| --: " * 9 + "| :-- |",
    ]
    for row in one.rows.values():
        images = [row.fact(key) for key in ("images_per_student", "images_total")]
        each, total = (columns.thousands(n) if n else columns.NOTHING for n in images)
        seeds = " ".join(f"[{seed}]({link}/{m.path.name})" for seed, m in row.manifests.items())
        lines.append(
            f"| {row.name} | {row.fact('students')} | {columns.millions(row.fact('parameters_per_student'))} "
            f"| {each} | {total} | {_spread(row.interval(row.metric))} "
            f"| {row.interval('precision').mean:.3f} | {row.interval('recall').mean:.3f} "
            f"| {_asked(row)} "
            f"| {columns.milliseconds(row.latency_ms) if row.latency_ms else columns.NOTHING} | {seeds} |"
        )
    return "\n".join(lines) + "\n"


def _map(one: Claims) -> str:
    """When many students pay: distance by total images and K, for rows that share parameters and total."""
    names = dict.fromkeys(n for j in one.judged if j.claim.number.startswith("10") for n in j.claim.variants)
    cells: dict[tuple[int, int], dict[int, Row]] = {}
    for row in (one.rows[name] for name in names if name in one.rows):
        key = (-row.fact("parameters_per_student"), row.fact("images_total"))
        cells.setdefault(key, {})[row.fact("students")] = row
    if not cells:
        return ""
    counts = sorted({k for by_k in cells.values() for k in by_k})
    lines = [
        f"### {one.experiment}: when do many students pay?\n",
        "Rows share the network and the training images of all students together, so the columns cost the same to "
        "train. Bold: the smallest mean.\n",
        "| parameters each | images in all | " + " | ".join(f"K = {k}" for k in counts) + " |",
        "| --: | --: " + "| --: " * len(counts) + "|",
    ]
    for (parameters, total), by_k in sorted(cells.items()):
        best = min(row.interval(row.metric).mean for row in by_k.values())
        texts = []
        for k in counts:
            interval = by_k[k].interval(by_k[k].metric) if k in by_k else None
            text = columns.NOTHING if interval is None else _spread(interval)
            texts.append(f"**{text}**" if interval is not None and interval.mean == best else text)
        lines.append(f"| {columns.millions(-parameters)} | {columns.thousands(total)} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _order(number: str) -> tuple[int, str]:
    digits, letter = re.fullmatch(r"(\d+)([a-z]?)", number).groups()  # type: ignore[union-attr]  # config checks it
    return int(digits), letter


def _number(value: float) -> str:
    return f"{value:.{2 if abs(value) < 5 else 1}f}"


def _spread(interval: Interval) -> str:
    digits, half = 2 if abs(interval.mean) < 5 else 1, interval.half_width
    return f"{interval.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def _signed(interval: Interval) -> str:
    text = f"{interval.mean:+.1f}".replace("-", "−")
    if interval.ends is None:
        return f"{text}, one seed"
    low, high = (f"{end:+.1f}".replace("-", "−") for end in interval.ends)
    return f"{text} [{low}, {high}]"


def _asked(row: Row) -> str:
    """The share of images that show their class; nothing where conditions have none."""
    known = all("asked_class_share" in m.results["metrics"] for m in row.manifests.values())
    return columns.percent(row.interval("asked_class_share").mean) if known else columns.NOTHING
