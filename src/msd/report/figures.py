"""Figures of the numbers: partition, share of asked classes, quality against cost. Only what the data give is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean  # exact: never outside the least and the greatest

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from msd.report import columns, curves, partitions, pictures, toy
from msd.report.read import Report, Row
from msd.report.style import INK, PARTS, SOFT, STYLE, WIDTH, Figure, looks, save

NUMBERED = 20  # classes up to which a cell carries its number


def draw_all(report: Report, folder: Path) -> list[Figure]:
    """Write every figure that the data give.

    Args:
        report: the data.
        folder: where the PNGs go.
    """
    with rc_context(STYLE):
        drawn = _draw(report, folder)
    return [figure for figure in drawn if figure is not None]


def _draw(report: Report, folder: Path) -> list[Figure | None]:
    return [
        toy.figure(report.toy, folder / "toy.png") if report.toy else None,
        pictures.overview(report, folder / "overview.png"),
        partition(report, folder / "partition.png"),
        quality_latency(report, folder / "quality-latency.png"),
        quality_compute(report, folder / "quality-compute.png"),
        asked_class(report, folder / "asked-class.png"),
        *curves.draw(report, folder),
        *(pictures.gallery(row, folder / f"gallery-{row.name}.png", report.condition) for row in report.rows),
    ]


def partition(report: Report, path: Path) -> Figure | None:
    """Which class belongs to which student, one strip for each distinct partition of several students."""
    distinct = partitions.distinct(report.rows)
    if not distinct:
        return None
    canvas = Canvas(figsize=(WIDTH, 1.0 * len(distinct) + 0.1), layout="constrained")
    for ax, (first, names) in zip(canvas.subplots(len(distinct), squeeze=False)[:, 0], distinct, strict=True):
        parts = first.parts
        classes = sum(map(len, parts))
        owner = np.empty(classes, dtype=int)
        for k, part in enumerate(parts):
            owner[part] = k
        ax.imshow(
            (owner % len(PARTS))[None], cmap=ListedColormap(PARTS), vmin=-0.5, vmax=len(PARTS) - 0.5, aspect="auto"
        )
        if classes <= NUMBERED:
            for c, k in enumerate(owner):
                ax.text(c, 0, str(k + 1), ha="center", va="center")
                ax.axvline(c + 0.5, color="white", lw=2)
            ax.set_xticks(range(classes), [f"class {c}" if classes <= 10 else str(c) for c in range(classes)])
        sizes = sorted({len(part) for part in parts})
        size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        title = f"{_listed(names)}: {first.partition}, {len(parts)} students of {size} classes"
        if first.within_part_distance is not None:
            title += f", distance within parts {first.within_part_distance:.2f}"
        ax.set_title(title, loc="left")
        ax.set_yticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    save(canvas, path)
    spread = (
        " Distance within parts: of the teacher's class embeddings from their part's mean, "
        "small where the classes of a part are alike."
    )
    spread *= any(row.within_part_distance is not None for row, _ in distinct)
    numbers = " The number in a cell is the student's." if classes <= NUMBERED else ""
    return Figure(
        path,
        "Which student owns which class",
        f"One strip per distinct partition, the classes from left to right, a colour per student.{numbers} "
        "Variants of one student have no strip: it owns every class." + spread,
        f"Partitions of {', '.join(_listed(names) for _, names in distinct)}.",
        section="partition",
    )


def quality_latency(report: Report, path: Path) -> Figure:
    """The distance against the time to one image."""
    canvas = Canvas(figsize=(WIDTH, 3.9), layout="constrained")
    ax = canvas.subplots()
    points = [_Point(row, row.numbers["latency_p50_ms"], *_distances(row, report)) for row in report.rows]
    for point in points:
        colour = looks(report.rows)[point.row.name].colour
        ax.plot([point.x, point.row.latency_p95_ms], [point.y, point.y], lw=1, color=colour)
    latency = report.numbers["latency"]
    _scatter(ax, report, points, f"milliseconds to one image (batch {latency['batch_size']}, {latency['device']})")
    _legend(canvas, report, [point.row.name for point in points])
    save(canvas, path)
    return Figure(
        path,
        "Quality against latency",
        "Lower left is better. A student runs once per image, whatever the number of students, so only the size of "
        "its network moves a student sideways. The mark is the median, the horizontal whisker ends at the 95th "
        "percentile. " + _front_and_floor(points),
        "Fréchet distance of each variant against its latency.",
        section="cost",
    )


def quality_compute(report: Report, path: Path) -> Figure | None:
    """The distance against what the training of all students of a variant cost."""
    rows = [row for row in report.rows if not row.is_teacher and row.numbers["images_total"]]
    if not rows:
        return None
    canvas = Canvas(figsize=(WIDTH, 3.9), layout="constrained")
    longest = max(row.numbers["training_seconds"] for row in rows)
    unit, seconds = ("seconds", 1) if longest < 100 else ("minutes", 60) if longest < 6000 else ("hours", 3600)
    left, right = canvas.subplots(1, 2, sharey=True)
    for ax, key, scale, label in (
        (left, "images_total", 1, "training images, all students"),
        (right, "training_seconds", seconds, f"training {unit}, summed over students"),
    ):
        points = [_Point(row, row.numbers[key] / scale, *_distances(row, report)) for row in rows]
        _scatter(ax, report, points, label)
    right.set_ylabel("")
    _legend(canvas, report, [row.name for row in rows])
    save(canvas, path)
    return Figure(
        path,
        "Quality against the compute of training",
        "Lower left is better. Left: images that all students of a variant together were trained on, over all stages; "
        f"right: {unit} of training, summed over the students. Variants above one another cost the same: the fair "
        "comparison. The teacher's own training is not counted. " + _front_and_floor(points),
        "Fréchet distance of each variant against its training images and training time.",
        section="cost",
    )


def asked_class(report: Report, path: Path) -> Figure | None:
    """Share of images taken for the class they were asked for, by variant and class, where there is a judge."""
    if not any(row.per_class for row in report.rows):
        return None
    table = {row.name: row.per_class for row in report.rows}
    if report.floor_per_class:
        table["real images"] = report.floor_per_class
    values = np.array(list(table.values()))
    low = np.floor(10 * min(values.min(), 0.9)) / 10
    canvas = Canvas(figsize=(WIDTH, 0.34 * len(table) + 0.9), layout="constrained")
    ax = canvas.subplots()
    image = ax.imshow(values, cmap="cividis", vmin=low, vmax=1, aspect="auto", interpolation="nearest")
    if values.shape[1] <= NUMBERED:
        for (y, x), value in np.ndenumerate(values):
            bright = (value - low) / (1 - low) > 0.6
            ax.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=INK if bright else "white")
        ax.set_xticks(range(values.shape[1]))
    ax.set_yticks(range(len(table)), list(table), color=INK)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("class")
    scale = canvas.colorbar(image, ax=ax, pad=0.01, aspect=12, format=lambda v, _: f"{100 * v:.0f} %")
    scale.outline.set_visible(False)
    save(canvas, path)
    return Figure(
        path,
        "Do the images show the class they were asked for?",
        "Share of the images, in per cent, that a second classifier takes for the class they were asked for. "
        "A dark cell is a class that a variant draws badly or confuses."
        + (f" The scale starts at {100 * low:.0f} %." if low else ""),
        "Heat map of the share of recognised images by variant and class.",
    )


@dataclass(frozen=True)
class _Point:
    """A variant over a cost: the mean of its seeds, the least and the greatest."""

    row: Row
    x: float
    y: float
    low: float
    high: float


def _distances(row: Row, report: Report) -> tuple[float, float, float]:
    """Mean, least and greatest distance of a variant's seeds."""
    values = [row.numbers[report.numbers["metric"]["name"]], *(other.distance for other in row.replicates)]
    return mean(values), min(values), max(values)


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Those that no other is better than at the same or a lower cost, from the cheapest on."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not front or point.y < front[-1].y:
            front.append(point)
    return front


def _front_and_floor(points: Sequence[_Point]) -> str:
    """What the lines mean, and the bars where there are any."""
    text = "Grey steps: the best to be had for so much or less. Dashed: the floor, real images against real images."
    seeds = {1 + len(point.row.replicates) for point in points} - {1}
    if not seeds:
        return text
    span = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{min(seeds)}"
    return (
        f"Where a variant was trained with several seeds ({span} seeds), the mark is their mean and the vertical bar "
        f"reaches from the least to the greatest; the table shows the first seed. {text}"
    )


def _scatter(ax: Axes, report: Report, points: Sequence[_Point], xlabel: str) -> None:
    """Points over a cost with the front and the floor; logarithmic where the values span much."""
    look, metric = looks(report.rows), report.numbers["metric"]
    floor = report.numbers["floor"]["metrics"][metric["name"]]
    xs, ys = [point.x for point in points], [point.high for point in points]
    if max(xs) > 5 * min(xs):
        ax.set_xscale("log")
    if max(ys) > 10 * floor:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.12 * max([*ys, floor]))
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda v, _: columns.thousands(v) if v >= 1000 else f"{v:g}"))
    ax.axhline(floor, color=SOFT, lw=1, ls=(0, (4, 3)))
    ax.annotate(
        "floor",
        (1, floor),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=SOFT,
        fontsize=8,
    )
    front = _front(points)
    ax.step([p.x for p in front], [p.y for p in front], where="post", color="#c3cad1", lw=2, zorder=1)
    for point in points:
        own = look[point.row.name]
        if point.row.replicates:
            bar = [[point.y - point.low], [point.high - point.y]]
            ax.errorbar(point.x, point.y, bar, color=own.colour, lw=1.2, capsize=3, zorder=2)
        ax.plot(point.x, point.y, own.marker, ms=8, color=own.colour, mec="white", mew=0.8, zorder=3)
    ax.margins(x=0.12)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(f"{columns.metric_label(metric)} (lower is better)")
    ax.grid(lw=0.6)


def _legend(canvas: Canvas, report: Report, names: list[str]) -> None:
    """Names above the panels: labels at the points would lie on one another where variants cost the same."""
    look = looks(report.rows)
    keys = [
        Line2D([], [], ls="", marker=look[n].marker, ms=8, color=look[n].colour, mec="white", mew=0.8, label=n)
        for n in names
    ]
    canvas.legend(handles=keys, loc="outside upper left", ncols=min(4, len(keys)), columnspacing=1.2, handletextpad=0.2)


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} and {len(names) - 2} more"
