"""Figures of the 2-D toy: its students beside the teacher, their distance over K, and the map of when many pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from msd.plan import Node
from msd.report.columns import thousands
from msd.report.style import COLOURS, INK, PARTS, SOFT, STYLE, WIDTH, Figure, save
from msd.store import Manifest, read_json, write_json

# around the circle, as the conditions lie
HUES = ["#d1495b", "#e07a3f", "#d9a520", "#7aa33c", "#2a9d8f", "#3381b8", "#6a5fc1", "#b2519d"]
PANELS = 3  # in a row
BEHIND = {"boxstyle": "round,pad=0.15", "fc": "#ffffffb0", "lw": 0}  # a number, so that a hatched cell can be read


def figure(manifest: Manifest, path: Path) -> Figure:
    """The teacher's points, those of K students for each K, and the distance over K: the report's first picture."""
    rows = manifest.results["rows"]
    points = np.load(manifest.file("points"))
    conditions = len(points["teacher"])
    limit = 1.02 * max(float(np.quantile(np.abs(p), 0.9995)) for p in points.values())
    with rc_context(STYLE):
        count = len(rows) + 2
        lines = -(-count // PANELS)
        canvas = Canvas(figsize=(WIDTH, 2.55 * lines), layout="constrained")
        axes = canvas.subplots(lines, PANELS, gridspec_kw={"hspace": 0.08, "wspace": 0.06}).flatten()
        _scatter(axes[0], points["teacher"], limit, "teacher", "the exact ODE")
        for ax, row in zip(axes[1:], rows, strict=False):
            _scatter(ax, points[f"students-{row['students']}"], limit, _students(row["students"]), _distance(row))
        _over_students(axes[len(rows) + 1], rows)
        for ax in axes[count:]:
            ax.set_visible(False)
        save(canvas, path)
    first, last = rows[0], rows[-1]
    return Figure(
        path,
        "The idea in two dimensions",
        f"{conditions} conditions, a colour each, are mixtures of Gaussians, so the teacher is exact. K one-step "
        f"students of width {first['width']} share the conditions in runs of neighbours; each is trained on "
        f"{thousands(first['images_each'])} points, so K students cost K times one. Below the panels, and in the last "
        "one: mean ℓ1 distance to the teacher's ODE output for the same noise, ± half the width of its 95 % interval "
        f"over {len(first['l1'])} seeds. Every panel starts from the same noise; the points are the first seed's.",
        f"Points of the teacher and of {', '.join(str(r['students']) for r in rows)} students; the distance is "
        f"{first['l1_mean']:.3f} for {_students(first['students'])} and {last['l1_mean']:.3f} for {last['students']}.",
        section="toy",
    )


def over_students(manifest: Manifest, path: Path) -> Figure:
    """The distance over K alone."""
    rows = manifest.results["rows"]
    with rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH / 2, 2.8), layout="constrained")
        _over_students(canvas.subplots(), rows)
        save(canvas, path)
    return Figure(
        path,
        "Distance to the teacher over K",
        "Mean ℓ1 distance at equal training of each student; a dot is a seed, a bar the 95 % interval of their mean.",
        "The l1 distance by the number of students.",
    )


def map_figure(value: Mapping[str, Any], path: Path) -> Figure:
    """Width against budget: the best K as colour, many against one as a number, ties hatched, the border drawn."""
    widths, budgets, students = value["widths"], value["budgets"], value["students"]
    places = {(p["width"], p["images_total"]): p for p in value["map"]}
    grid = [[places[w, b] for w in widths] for b in budgets]
    colours = dict(zip(students, [PARTS[4], *(PARTS[i] for i in (0, 1, 2, 3, 5, 6, 7))], strict=False))
    best = np.array([[students.index(p["best_students"]) for p in line] for line in grid])
    with rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 0.55 * len(budgets) + 1.3), layout="constrained")
        ax = canvas.subplots()
        palette = ListedColormap([colours[k] for k in students])
        ax.imshow(best, cmap=palette, vmin=-0.5, vmax=len(students) - 0.5, origin="lower", aspect="auto")
        for (y, x), _ in np.ndenumerate(best):
            place = grid[y][x]
            if place["tie"]:
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", ec="#ffffffb0", lw=0))
            ax.text(x, y, f"{place['ratio']:.2f}", ha="center", va="center", fontsize=10, zorder=4, bbox=BEHIND)
        _border(ax, np.array([[p["best_students"] > 1 for p in line] for line in grid]))
        ax.set_xticks(range(len(widths)), [str(w) for w in widths])
        ax.set_yticks(range(len(budgets)), [thousands(b) for b in budgets])
        ax.set_xlabel("width of a student's hidden layers")
        ax.set_ylabel("training images, all students")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        keys = [Patch(fc=colours[k], label=f"K = {k} best") for k in students]
        keys.append(Patch(fc="#c8ced4", hatch="////", ec="white", lw=0, label="tie within 95 %"))
        canvas.legend(handles=keys, loc="outside upper left", ncols=len(keys), columnspacing=1.2, handlelength=1.2)
        save(canvas, path)
    return Figure(
        path,
        "When do many students pay?",
        "Colour: the K with the smallest mean ℓ1 distance when K students share one training budget equally. Number: "
        "ℓ1 of the best K > 1 divided by ℓ1 of one student, below 1 where many pay. Hatched: its 95 % interval over "
        f"{len(value['seeds'])} seeds includes 1. The line divides places where some K > 1 is best from the others.",
        "Map of the best number of students by student width and training budget.",
    )


def publish(figure_node: Node, map_node: Node, docs: Path) -> list[Path]:
    """Write the toy's data and pictures where the repository keeps them; returns their paths.

    Raises:
        MissingFileError: the toy or its map is not there yet.
    """
    toy, whole = Manifest.read(figure_node.manifest), Manifest.read(map_node.manifest)
    value = read_json(whole.file("map"))
    data, images = docs / "claims" / "toy2d.json", docs / "images"
    write_json(data, value | {"figure": toy.results["rows"]})
    drawn = [
        figure(toy, images / "toy2d.png"),
        over_students(toy, images / "toy2d-l1.png"),
        map_figure(value, images / "toy2d-map.png"),
    ]
    return [data, *(f.path for f in drawn)]


def _scatter(ax: Axes, points: NDArray[np.float32], limit: float, name: str, below: str) -> None:
    for c, of_condition in enumerate(points):
        colour = HUES[c * len(HUES) // len(points) % len(HUES)]
        ax.plot(*of_condition.T, ls="", marker="o", ms=1.7, mew=0, alpha=0.75, color=colour)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(name, fontweight="bold", pad=3)
    ax.set_xlabel(below, labelpad=1)


def _over_students(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(rows))
    means = [row["l1_mean"] for row in rows]
    half = [row["l1_mean"] - row["l1_interval"][0] for row in rows]
    ax.errorbar(places, means, yerr=half, color=COLOURS[0], marker="o", ms=5, lw=1.5, capsize=3)
    for x, row in zip(places, rows, strict=True):
        ax.plot([x] * len(row["l1"]), row["l1"], ls="", marker="o", ms=2.5, color=SOFT, mew=0, zorder=3)
    ax.set_xticks(places, [str(row["students"]) for row in rows])
    ax.set_xlim(-0.4, len(rows) - 0.6)
    ax.set_ylim(0, 1.15 * max(m + h for m, h in zip(means, half, strict=True)))
    ax.set_xlabel("students K")
    ax.set_title("ℓ1 distance to the teacher", fontweight="bold", pad=3)
    ax.grid(axis="y", lw=0.6)


def _border(ax: Axes, many: NDArray[np.bool_]) -> None:
    """Lines between neighbours of which one is won by many students and the other by one."""
    for (y, x), here in np.ndenumerate(many):
        if x + 1 < many.shape[1] and here != many[y, x + 1]:
            ax.plot([x + 0.5] * 2, [y - 0.5, y + 0.5], color=INK, lw=2.5, solid_capstyle="round", zorder=3)
        if y + 1 < many.shape[0] and here != many[y + 1, x]:
            ax.plot([x - 0.5, x + 0.5], [y + 0.5] * 2, color=INK, lw=2.5, solid_capstyle="round", zorder=3)


def _students(count: int) -> str:
    return f"{count} student{'s' * (count > 1)}"


def _distance(row: Mapping[str, Any]) -> str:
    mean, (low, _) = row["l1_mean"], row["l1_interval"]
    return f"ℓ1 {mean:.3f} ± {mean - low:.3f}"
