"""Regression pairs for all students: noise and the teacher's deterministic sample for it, never filtered by part.

They are drawn in shards, so that a job that dies loses one shard's work at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from msd import store
from msd.config import Compute
from msd.draws import noise_of_images, stream_seed
from msd.errors import InterruptedRun, MsdError
from msd.networks import load_network, sample_teacher
from msd.plan import Node
from msd.training.engine import Progress, resolve_device
from msd.training.job import state_folder
from msd.training.lease import Lease
from msd.training.signals import StopRequest

SHARD = 250  # pairs


def make_pairs(node: Node, compute: Compute, progress: Progress) -> store.Manifest:
    """Draw what is missing, then write all pairs as one file and its manifest.

    Raises:
        InterruptedRun: a signal came; the shards that are whole are kept.
    """
    torch.set_num_threads(compute.threads)
    settings, teacher = node.settings, store.Manifest.read(node.inputs["teacher"].manifest)
    _, folder = state_folder(node, {**settings, "teacher": teacher.sha256("weights")})
    path = node.manifest.parent / "pairs.safetensors"
    waiting = f"{node.label}: another job draws them; waiting"
    with Lease(folder, on_wait=lambda: print(waiting, flush=True), work=str(node.manifest)) as lease:
        _draw_missing(settings, teacher.file("weights"), folder, compute, lease.check, progress)
        shards = [load_file(_shard(folder, first)) for first in range(0, settings["pairs"], SHARD)]
        tensors = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        store.write_with(path, lambda p: save_file(tensors, p), lease.check)
    return store.Manifest.write(
        node.manifest,
        kind="pairs",
        settings=settings,
        inputs=node.input_paths,
        files={"pairs": path},
        results={"pairs": settings["pairs"]},
    )


def _draw_missing(
    settings: dict[str, Any],
    weights: Path,
    folder: Path,
    compute: Compute,
    guard: Callable[[], None],
    progress: Progress,
) -> None:
    """Every shard is a function of (seed, number of its first pair); those that are whole are kept."""
    count, seed = settings["pairs"], stream_seed(settings["seed"], "pairs", 0)
    missing = [first for first in range(0, count, SHARD) if not _is_whole(_shard(folder, first))]
    if not missing:
        return
    device = resolve_device(compute.device)
    teacher = load_network(weights).to(device)
    with StopRequest() as stop:
        for first in missing:
            n = min(SHARD, count - first)
            noise = noise_of_images(seed, first, n, teacher.image_shape)
            cond = torch.arange(first, first + n) % teacher.num_classes
            images = sample_teacher(teacher, noise.to(device), cond.to(device), settings["sampler"]).cpu()
            shard, path = {"noise": noise, "images": images, "cond": cond}, _shard(folder, first)
            store.write_with(path, partial(save_file, shard), guard)
            store.write_json(path.with_suffix(".json"), store.file_record(path, folder))
            progress(first + n, count, {})
            if (reason := stop.requested) and first != missing[-1]:
                raise InterruptedRun(
                    f"Stopped; {first + n} of {count} pairs are drawn.",
                    where=str(folder),
                    why=reason,
                    todo="Run the same command again: it goes on from here.",
                )


def _shard(folder: Path, first: int) -> Path:
    return folder / f"shard-{first:09d}.safetensors"


def _is_whole(path: Path) -> bool:
    try:
        store.verify_sha256(path, store.read_json(path.with_suffix(".json"))["sha256"])
    except (MsdError, KeyError):
        return False
    return True
