"""Figures of the breakdown: students against parts, classes against their floor, and two kinds of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from msd.errors import DamagedFileError
from msd.plan import Plan
from msd.report import columns
from msd.report.check import RERUN
from msd.report.pictures import GALLERY_TILE, WHITE, font, save_sheet, tile_of
from msd.report.read import Report, Row
from msd.report.style import INK, PARTS, SOFT, STYLE, WIDTH, Figure, save

NUMBERED = 10  # students up to which a cell of the matrix carries its numbers
PANELS = 3  # matrices side by side
LABELLED = 30  # classes up to which each has a tick
METRIC = ("name", "features_sha256", "judge_sha256")


@dataclass(frozen=True)
class Broken:
    """One variant's breakdown.

    Attributes:
        results: of its manifest.
        students: (classes shown, students, columns, C, H, W) uint8 as .npy.
        nearest: (classes shown, 3, C, H, W) uint8 as .npy.
    """

    row: Row
    results: dict[str, Any]
    students: Path
    nearest: Path

    @property
    def parts(self) -> list[dict[str, Any]]:
        return self.results["parts"]

    @property
    def is_split(self) -> bool:
        """Whether there is more than one student to compare."""
        return len(self.parts) > 1


def read(plan: Plan, report: Report) -> list[Broken]:
    """The breakdowns of a report's rows, from manifests that it has checked.

    Raises:
        DamagedFileError: one was made with another metric than the table.
    """
    found = []
    for row in report.rows:
        node = plan.variants[row.name].breakdown
        if node is None:
            continue
        manifest = report.manifests[os.path.relpath(node.manifest, plan.root)]
        for key in METRIC:
            if manifest.results["metric"][key] != report.numbers["metric"][key]:
                raise DamagedFileError(
                    "A breakdown was measured differently from the table.",
                    where=str(manifest.path),
                    why=f"{key} is {manifest.results['metric'][key]!r}, not {report.numbers['metric'][key]!r}",
                    todo=RERUN.format(path=manifest.path),
                )
        found.append(Broken(row, manifest.results, manifest.file("students"), manifest.file("nearest")))
    return found


def draw_all(broken: Sequence[Broken], folder: Path) -> list[Figure]:
    """Write the figures: the matrices, the classes, then each variant's pictures."""
    split = [b for b in broken if b.is_split]
    with rc_context(STYLE):
        figures = [matrix(split, folder / "students-by-part.png")] if split else []
        figures += [classes(broken, folder / "by-class.png")] if broken else []
    figures += [same_noise(b, folder / f"students-{b.row.name}.png") for b in split]
    return figures + [nearest(b, folder / f"nearest-{b.row.name}.png") for b in broken]


def matrix(split: Sequence[Broken], path: Path) -> Figure:
    """Every student (rows) asked for every part (columns), one panel per variant."""
    lines = -(-len(split) // PANELS)
    canvas = Canvas(figsize=(WIDTH, 2.9 * lines), layout="constrained")
    panels = canvas.subplots(lines, min(PANELS, len(split)), squeeze=False).ravel()
    for ax, b in zip(panels, split, strict=False):
        _panel(ax, b)
    for ax in panels[len(split) :]:
        ax.set_axis_off()
    save(canvas, path)
    return Figure(
        path,
        "Every student asked for every part",
        "A row is a student, a column the conditions of a part; framed: the owner, whom the router asks. In a cell the "
        "Fréchet distance to held-out real images of the part's classes, and the share of the images that the judge "
        "takes for the class asked for. Darker: further from the best student of the column. Below each column its "
        "floor, as many real training images; columns do not compare with each other, nor with the ablation table.",
        f"Heat maps of students against parts of {', '.join(b.row.name for b in split)}.",
        section="who",
    )


def _panel(ax: Axes, broken: Broken) -> None:
    parts = broken.parts
    distance = np.array([part["distance"] for part in parts]).T
    share = np.array([part["asked_class_share"] for part in parts]).T
    worse = np.log(distance / distance.min(axis=0))
    ax.imshow(worse, cmap="Blues", vmin=0, vmax=max(1.8 * worse.max(), 0.7), aspect="auto")
    if len(parts) <= NUMBERED:
        size = 8 if len(parts) <= 4 else 5.5
        for (j, k), value in np.ndenumerate(distance):
            text = f"{columns.distance(value, distance.ravel().tolist())}\n{100 * share[j, k]:.0f} %"
            ax.text(k, j, text, ha="center", va="center", fontsize=size, color=INK)
        ax.set_yticks(range(len(parts)), [str(j + 1) for j in range(len(parts))])
    for k in range(len(parts)):
        ax.add_patch(Rectangle((k - 0.47, k - 0.47), 0.94, 0.94, fill=False, ec=INK, lw=1.6))
    if len(parts) <= 4:
        labels = [f"{listed(part['classes'], 14)}\nfloor {part['floor']:.1f}" for part in parts]
        ax.set_xticks(range(len(parts)), labels, fontsize=7)
    else:
        ax.set_xticks(range(len(parts)), [str(k + 1) for k in range(len(parts))])
    ax.set_title(broken.row.name, loc="left")
    ax.set_ylabel("student")
    ax.set_xlabel("classes asked for" if len(parts) <= 4 else "part")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def classes(broken: Sequence[Broken], path: Path) -> Figure:
    """Each class of the routed model: a bar from the floor to the distance."""
    canvas = Canvas(figsize=(WIDTH, 1.15 * len(broken) + 0.5), layout="constrained")
    axes = canvas.subplots(len(broken), squeeze=False, sharex=True, sharey=True)[:, 0]
    for ax, b in zip(axes, broken, strict=True):
        found = b.results["classes"]
        floor, distance = (np.array([c[key] for c in found]) for key in ("floor", "distance"))
        x = np.arange(len(found))
        colours = [PARTS[c["student"] % len(PARTS)] for c in found]
        ax.bar(x, distance - floor, bottom=floor, width=0.72, color=colours)
        ax.hlines(floor, x - 0.46, x + 0.46, color=INK, lw=1.4)
        ax.set_yscale("log")
        ax.set_title(b.row.name, loc="left")
        ax.grid(axis="y", lw=0.6)
        ax.tick_params(axis="x", length=0)
    axes[0].set_ylim(bottom=0.7 * min(c["floor"] for b in broken for c in b.results["classes"]))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    if len(x) <= LABELLED:
        axes[-1].set_xticks(x)
    axes[-1].set_xlabel("class")
    canvas.supylabel("Fréchet distance (log)", fontsize=9, color=INK)
    save(canvas, path)
    images, reference = found[0]["images"], sorted(c["reference_images"] for c in found)
    several = "the colour is the student's, " if any(b.is_split for b in broken) else ""
    between = f"{reference[0]}" if reference[0] == reference[-1] else f"{reference[0]} to {reference[-1]}"
    return Figure(
        path,
        "Each class by itself",
        f"The routed model's images of one class against the held-out images of that class: {several}a bar begins at "
        f"the floor (dark line: the same distance of as many real training images) and ends at the distance, so its "
        f"length tells how many times the floor it is. Each class has {images} generated and {between} real images.",
        f"Fréchet distance by class of {', '.join(b.row.name for b in broken)}, with the floor of each class.",
        section="who",
    )


def same_noise(broken: Broken, path: Path) -> Figure:
    """Rows are classes, blocks are students on the same noises; the owner's images are framed."""
    images = _load(broken.students, 6)
    shown, count, width = images.shape[:3]
    side, gap, between, left, head = tile_of(images[0, 0, 0], GALLERY_TILE).height, 4, 28, 56, 44
    block = width * (side + gap) - gap
    sheet = Image.new("RGB", (left + count * (block + between), head + shown * (side + 2 * gap) + gap), WHITE)
    draw = ImageDraw.Draw(sheet)
    owner = {c: k for k, part in enumerate(broken.parts) for c in part["classes"]}
    for k in range(count):
        draw.text((left + k * (block + between), 4), f"student {k + 1}", INK, font(24))
    for y, c in enumerate(broken.results["shown_classes"]):
        top = head + y * (side + 2 * gap)
        draw.text((40, top + side / 2), str(c), INK, font(24), anchor="rm")
        for k in range(count):
            x = left + k * (block + between)
            for t in range(width):
                sheet.paste(tile_of(images[y, k, t], GALLERY_TILE), (x + t * (side + gap), top))
            if owner[c] == k:
                draw.rectangle((x - 4, top - 4, x + block + 3, top + side + 3), outline="#d55e00", width=4)
    save_sheet(sheet, path)
    return Figure(
        path,
        f"Right and wrong students of {broken.row.name}",
        f"`{broken.row.name}`: a row per class, a block per student, the same noise at the same place of every block. "
        "Framed: the student that owns the class, which the router asks.",
        f"Images of {shown} classes by each of the {count} students of {broken.row.name}.",
        variant=broken.row.name,
        section="who",
    )


def nearest(broken: Broken, path: Path) -> Figure:
    """Of each class the image that is nearest to a training image, between its nearest ones."""
    images = _load(broken.nearest, 5)
    shown, across = len(images), 5
    side, gap, between, label = tile_of(images[0, 0], GALLERY_TILE).height, 4, 34, 34
    block = label + 3 * (side + gap)
    lines = -(-shown // across)
    sheet = Image.new("RGB", (min(across, shown) * (block + between), lines * (side + 12)), WHITE)
    draw = ImageDraw.Draw(sheet)
    for i, c in enumerate(broken.results["shown_classes"]):
        x, y = i % across * (block + between), i // across * (side + 12)
        draw.text((x + label - 8, y + side / 2), str(c), INK, font(20), anchor="rm")
        for t in range(3):
            sheet.paste(tile_of(images[i, t], GALLERY_TILE), (x + label + t * (side + gap), y))
        draw.rectangle((x + label, y + side + 3, x + label + side - 1, y + side + 6), fill=SOFT)
    save_sheet(sheet, path)
    return Figure(
        path,
        f"Nearest training images of {broken.row.name}",
        f"`{broken.row.name}`: of each class the generated image (underlined) that comes nearest to a training image, "
        "then the training image nearest by pixels, then the one nearest by features. Chosen to find copies, so not "
        "typical.",
        f"{shown} generated images, each beside its nearest training images.",
        variant=broken.row.name,
        section="who",
    )


def listed(numbers: Sequence[int], limit: int = 40) -> str:
    """0, 1, 2, 5 → ``0–2, 5``, cut where it is longer than ``limit``."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ", ".join(str(a) if a == b else f"{a}–{b}" if b > a + 1 else f"{a}, {b}" for a, b in runs)
    return text if len(text) <= limit else f"{text[: limit - 1].rpartition(',')[0]}, …"


def _load(path: Path, dimensions: int) -> NDArray[np.uint8]:
    images = np.load(path)
    if images.ndim != dimensions or images.dtype != np.uint8 or images.shape[-3] not in (1, 3):
        raise DamagedFileError(
            "A breakdown's pictures are not uint8 images with 1 or 3 channels.",
            where=str(path),
            why=f"the array is {images.shape} {images.dtype}, expected {dimensions} dimensions",
            todo="Break the variant down again.",
        )
    return images
