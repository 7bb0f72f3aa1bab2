"""Cells: K students of one width, trained for one length, for every seed. What is finished is kept and not done again.

Cells of one K are trained as one stack, whatever their width; a shorter length is the longer one's state on its way,
since nothing that a student is told depends on where it will stop. Draws nothing, compares nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msd import config
from msd.store import Manifest, digest, one_writer, write_with
from msd.toy import measure
from msd.toy.distribution import pinwheel
from msd.toy.train import ToyStep, flops_per_image, make_pairs, make_start

SHOWN = 200  # points of a condition that a cell keeps for pictures
DIGITS = 6  # of a measured number

Tell = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, order=True)
class Cell:
    """What distinguishes one cell from another.

    Attributes:
        students: K.
        width: of their hidden layers.
        images: of each student's updates.
    """

    students: int
    width: int
    images: int


def settings_of(toy: config.Toy, cell: Cell) -> dict[str, Any]:
    """All that decides a cell's numbers."""
    common = toy.model_dump(
        mode="json", include={"distribution", "seeds", "layers", "fake_score_width", "start", "measure"}
    )
    recipe = toy.dm.model_dump(mode="json", exclude={"images"})
    return {**common, "dm": recipe, "students": cell.students, "width": cell.width, "images": cell.images}


def path_of(toy: config.Toy, cell: Cell, folder: Path) -> Path:
    """Where its manifest lies."""
    name = f"width{cell.width}-{cell.images}-{digest(settings_of(toy, cell), 8)}"
    return _of_students(folder, cell.students) / name / "manifest.json"


def finish(toy: config.Toy, cells: Iterable[Cell], folder: Path, tell: Tell) -> dict[Cell, Manifest]:
    """Train what is missing; returns every cell's manifest.

    Args:
        toy: settings; its ``students``, ``width`` and ``map`` are not looked at.
        cells: which.
        folder: of all cells.
        tell: progress: which K, images trained on, of how many, last l1 by width.

    Raises:
        DivergedError: a gradient was not finite.
    """
    wanted = sorted(set(cells))
    groups = [list(group) for _, group in groupby(wanted, key=lambda cell: cell.students)]
    for number, group in enumerate(groups, start=1):
        place = _of_students(folder, group[0].students)
        with one_writer(place, lambda: print("Waiting for a process that trains toy students.", flush=True)):
            missing = [cell for cell in group if not path_of(toy, cell, folder).exists()]
            if missing:
                _train(toy, missing, folder, partial(tell, f"K = {group[0].students} ({number} of {len(groups)})"))
    return {cell: Manifest.read(path_of(toy, cell, folder)) for cell in wanted}


def _of_students(folder: Path, students: int) -> Path:
    return folder / f"students-{students}"


def _train(
    toy: config.Toy, group: Sequence[Cell], folder: Path, tell: Callable[[int, int, dict[str, float]], None]
) -> None:
    """Train the cells of one K; each is written when its length is reached."""
    torch.set_num_threads(1)  # the matrices are tiny; also, more threads would sum in another order
    teacher, batch = pinwheel(toy.distribution), toy.dm.batch_size
    assert toy.dm.regression is not None
    pairs = make_pairs(teacher, toy.dm.regression, toy.seeds)
    noise = measure.evaluation_noise(toy.measure, toy.distribution.conditions)
    target = measure.targets(teacher, noise, toy.measure)
    widths = sorted({cell.width for cell in group})
    step = ToyStep(toy, teacher, widths, group[0].students, pairs, make_start(toy, widths, pairs))
    longest, began = max(cell.images for cell in group), time.process_time()
    stops = {cell.images for cell in group}
    seen: dict[str, float] = {}
    for start in range(0, longest, batch):
        step(start)
        if start + batch in stops:
            step.check()
            here = [cell for cell in group if cell.images == start + batch]
            points = step.evaluate(noise)
            seconds = (time.process_time() - began) / len(here)
            for cell in here:
                results = _results(toy, cell, points[widths.index(cell.width)], target)
                _write(toy, cell, folder, points[widths.index(cell.width), 0], results | {"cpu_seconds": seconds})
                seen[f"width {cell.width}"] = float(np.mean(results["l1"]))
            began = time.process_time()
        tell(start + batch, longest, seen)


def _results(toy: config.Toy, cell: Cell, points: Tensor, target: Tensor) -> dict[str, Any]:
    """One number per seed, in the order of the settings; points (S, C, E, 2)."""
    l1 = measure.l1(points, target)
    wasserstein = measure.sliced_wasserstein(points, target, toy.measure.directions)
    images = cell.students * cell.images
    return {
        "l1": _rounded(l1.mean(-1)),
        "l1_per_condition": _rounded(l1),
        "sliced_wasserstein": _rounded(wasserstein.mean(-1)),
        "images_total": images,
        "flops": round(images * flops_per_image(toy, cell.width)),
    }


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().numpy(), DIGITS).tolist()


def _write(toy: config.Toy, cell: Cell, folder: Path, points: Tensor, results: dict[str, Any]) -> None:
    path = path_of(toy, cell, folder)
    file = path.parent / "points.npy"
    write_with(file, lambda p: np.save(p, points[:, :SHOWN].numpy()))
    Manifest.write(path, kind="toy-cell", settings=settings_of(toy, cell), files={"points": file}, results=results)
