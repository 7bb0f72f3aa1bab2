"""The two products of the toy: the figure's students, and the map. Each is one manifest, made from cells."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from msd import config
from msd.intervals import Interval
from msd.plan import Node
from msd.store import Manifest, write_json, write_with
from msd.toy import measure
from msd.toy.cells import SHOWN, Cell, Tell, finish
from msd.toy.compare import DIGITS, comparison
from msd.toy.distribution import pinwheel


def run_figure(node: Node, cells: Path, tell: Tell) -> Manifest:
    """Train K students for each K, each as long as every other; the numbers by K, and points to draw.

    Args:
        node: of the plan.
        cells: folder of all cells.
        tell: progress.
    """
    toy = config.Toy.model_validate(node.settings)
    wanted = [Cell(k, toy.width, toy.dm.images) for k in toy.students]
    finished = finish(toy, wanted, cells, tell)
    noise = measure.evaluation_noise(toy.measure, toy.distribution.conditions)[:, :SHOWN]
    points = {"teacher": measure.targets(pinwheel(toy.distribution), noise, toy.measure).numpy()}
    points |= {f"students-{cell.students}": np.load(finished[cell].file("points")) for cell in wanted}
    file = node.manifest.parent / "points.npz"
    write_with(file, lambda p: np.savez_compressed(p, allow_pickle=False, **points))
    rows = [_row(cell, finished[cell]) | {"l1_per_condition": _per_condition(finished[cell])} for cell in wanted]
    return Manifest.write(
        node.manifest,
        kind=node.kind,
        settings=node.settings,
        files={"points": file},
        results={"rows": rows, "seeds": toy.seeds, "cells": _paths(finished.values(), node.manifest.parent)},
    )


def run_map(node: Node, cells: Path, tell: Tell) -> Manifest:
    """Train every cell of the map; ``map.json`` beside the manifest is the map as data.

    Args:
        node: of the plan.
        cells: folder of all cells.
        tell: progress.
    """
    toy = config.Toy.model_validate(node.settings)
    plane = toy.map
    assert plane is not None
    toy = toy.model_copy(update={"seeds": plane.seeds})
    places = [(width, images) for width in plane.widths for images in plane.images]
    cell_of = {(w, i, k): Cell(k, w, i // k) for w, i in places for k in toy.students}
    finished = finish(toy, cell_of.values(), cells, tell)
    rows = {where: _row(cell, finished[cell]) for where, cell in cell_of.items()}
    compared = [comparison([rows[w, i, k] for k in toy.students]) for w, i in places]
    file = node.manifest.parent / "map.json"
    manifests = list(finished.values())
    value = {
        "what": "l1 distance of K one-step students to the teacher's ODE in the 2-D toy, at equal total compute",
        "command": "msd toy --map",
        "settings": node.settings,
        "settings_digest": node.digest,
        "compute": "flops of all networks in all training; budgets are training images of all K students",
        "intervals": "95 %, Student's t over the seeds; of ratios, of the logarithm",
        "seeds": toy.seeds,
        "cpu_seconds": round(sum(m.results["cpu_seconds"] for m in manifests), 1),
        "machine": manifests[0].body["machine"],
        "code": manifests[0].body["code"],
        "finished": max(m.body["finished"] for m in manifests),
        "widths": plane.widths,
        "budgets": plane.images,
        "students": toy.students,
        "cells": list(rows.values()),
        "map": compared,
    }
    write_json(file, value)
    return Manifest.write(
        node.manifest,
        kind=node.kind,
        settings=node.settings,
        files={"map": file},
        results={"cells": _paths(manifests, node.manifest.parent)},
    )


def _row(cell: Cell, manifest: Manifest) -> dict[str, Any]:
    """A cell's numbers, those of the seeds and their mean."""
    results = manifest.results
    return {
        "width": cell.width,
        "students": cell.students,
        "images_each": cell.images,
        **{key: results[key] for key in ("images_total", "flops", "l1", "sliced_wasserstein")},
        **_spread(results, "l1"),
        **_spread(results, "sliced_wasserstein"),
    }


def _spread(results: dict[str, Any], key: str) -> dict[str, Any]:
    found = Interval.of(results[key])
    low, high = found.ends or (found.mean, found.mean)
    return {f"{key}_mean": round(found.mean, DIGITS), f"{key}_interval": [round(low, DIGITS), round(high, DIGITS)]}


def _per_condition(manifest: Manifest) -> Any:
    """Mean over seeds, by condition."""
    return np.mean(manifest.results["l1_per_condition"], axis=0).round(6).tolist()


def _paths(manifests: Iterable[Manifest], folder: Path) -> list[str]:
    return [os.path.relpath(manifest.path, folder) for manifest in manifests]
