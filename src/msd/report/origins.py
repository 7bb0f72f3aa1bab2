"""Where each number of the table comes from: manifest, key, sha256, and the command that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msd.plan import RESULTS
from msd.report import columns
from msd.report.read import Report, Row
from msd.report.seeds import Replicate


@dataclass(frozen=True)
class Origin:
    """One number's way back.

    Attributes:
        id: of its box on the page.
        title: what the number is, and of which row.
        value: all its digits.
        key: where in the manifest it stands, from the top, with dots.
        manifest: its path.
        sha256: of the manifest.
        command: what made the manifest.
        finished: when.
        replicates: the same number with other seeds.
    """

    id: str
    title: str
    value: Any
    key: str
    manifest: str
    sha256: str
    command: str
    finished: str
    replicates: list[Replicate]


@dataclass(frozen=True)
class Origins:
    """Of all numbers of the table.

    Attributes:
        cells: row → column → origin; None where a value is not known.
        floor: of the metric's floor.
    """

    cells: list[list[Origin | None]]
    floor: Origin

    def __iter__(self) -> Iterator[Origin]:
        yield self.floor
        yield from (origin for row in self.cells for origin in row if origin)

    def of(self, row: int, key: str, metric: dict[str, Any]) -> Origin | None:
        """The origin of one column of a row."""
        return self.cells[row][[column.key for column in columns.columns(metric)].index(key)]


def origins(report: Report, configuration: str = "") -> Origins:
    """Trace the table.

    Args:
        report: the data.
        configuration: options of the command line that choose this experiment, for the commands.
    """
    metric = report.numbers["metric"]

    def trace(id: str, title: str, value: Any, source: str, key: str, replicates: list[Replicate]) -> Origin:
        manifest, path = report.manifests[source], str(RESULTS / report.numbers["experiment"] / source)
        return Origin(
            id=id,
            title=title,
            value=value,
            key=key,
            manifest=path,
            sha256=report.sha256[source],
            command=" ".join(["msd", manifest.body["kind"], path, configuration]).strip(),
            finished=manifest.body["finished"],
            replicates=replicates,
        )

    def cell(r: int, row: Row, c: int, column: columns.Column) -> Origin | None:
        value = row.numbers[column.key]
        if value is None:
            return None
        title, key = f"{column.title} of {row.name}", column.found.format(key=column.key, variant=row.name)
        replicates = row.replicates if column.key == metric["name"] else []
        return trace(f"origin-{r}-{c}", title, value, row.sources[column.source], key, replicates)

    cells = [
        [cell(r, row, c, column) for c, column in enumerate(columns.columns(metric))]
        for r, row in enumerate(report.rows)
    ]
    name = metric["name"]
    value = report.numbers["floor"]["metrics"][name]
    return Origins(cells, trace("origin-floor", "the floor", value, report.floor, f"results.metrics.{name}", []))
