"""Regression pairs for all students: noise and the teacher's deterministic sample for it, never filtered by part.

They are drawn in shards, so that a job that dies loses one shard's work at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from msd import store
from msd.config import Compute
from msd.draws import noise_of_images, stream_seed
from msd.networks import load_network, sample_teacher
from msd.plan import Node
from msd.shards import Shards
from msd.training.engine import Progress, resolve_device
from msd.training.job import alone

SHARD = 250  # pairs


def make_pairs(node: Node, compute: Compute, progress: Progress) -> store.Manifest:
    """Draw what is missing, then write all pairs as one file and its manifest.

    Raises:
        InterruptedRun: a signal came; the shards that are whole are kept.
    """
    settings, teacher = node.settings, store.Manifest.read(node.inputs["teacher"].manifest)
    identity, path = {**settings, "teacher": teacher.sha256("weights")}, node.manifest.parent / "pairs.safetensors"
    with alone(node, compute, identity) as (folder, guard, stop):
        shards = _drawn(settings, teacher.file("weights"), folder, compute, guard, stop, progress)
        parts = [load_file(shard) for shard in shards.paths.values()]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        store.write_with(path, lambda p: save_file(tensors, p), guard)
    return store.Manifest.write(
        node.manifest,
        kind="pairs",
        settings=settings,
        inputs=node.input_paths,
        files={"pairs": path},
        results={"pairs": settings["pairs"]},
    )


def _drawn(
    settings: dict[str, Any],
    weights: Path,
    folder: Path,
    compute: Compute,
    guard: Callable[[], None],
    stop: Callable[[], str | None],
    progress: Progress,
) -> Shards:
    """Every shard is a function of (seed, number of its first pair); those that are whole are kept."""
    count, seed = settings["pairs"], stream_seed(settings["seed"], "pairs", 0)
    device = resolve_device(compute.device)
    # the folder's name holds what decides the pairs, but for the size of the shards, which their number of items shows
    shards = Shards(folder, "shard", ".safetensors", count=count, size=SHARD, identity=f"{count} by {SHARD}")
    teacher = cache(lambda: load_network(weights).to(device))  # only if something is missing

    def write(path: Path, first: int, number: int) -> None:
        noise = noise_of_images(seed, first, number, teacher().image_shape)
        cond = torch.arange(first, first + number) % teacher().num_classes
        images = sample_teacher(teacher(), noise.to(device), cond.to(device), settings["sampler"]).cpu()
        store.write_with(path, partial(save_file, {"noise": noise, "images": images, "cond": cond}), guard)

    shards.fill(write, what="pairs are drawn", guard=guard, stop=stop, progress=progress)
    return shards
