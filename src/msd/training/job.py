"""Same command = start, resume, or nothing to do: a training job around the engine.

The state of a job lives in a folder named by its identity, the digest of everything that decides the resulting bits.
The declared output is a manifest, written last. Two jobs of one identity train once; the second adopts the result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msd import store
from msd.config import Compute
from msd.errors import MsdError
from msd.plan import Node
from msd.training import journal
from msd.training.engine import Progress, Schedule, train
from msd.training.step import Step

IDENTITY_LENGTH = 16


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        node: the piece of work of the plan.
        identity: everything that decides the resulting bits, apart from the node's kind.
        images: how many to train on.
        make_step: builds the step; called only if there is something left to do.
        export: (step, folder) → name → file of the networks to use.
        results: further results for the manifest.
        measure: (name → file of the networks) → results that need the finished networks.
    """

    node: Node
    identity: dict[str, Any]
    images: int
    make_step: Callable[[], Step]
    export: Callable[[Any, Path], dict[str, Path]]
    results: dict[str, Any]
    measure: Callable[[dict[str, Path]], dict[str, Any]] = lambda files: {}


def run_job(job: Job, compute: Compute, progress: Progress) -> store.Manifest:
    """Train, or go on, or adopt what is there; then write the manifest.

    Args:
        job: what to train.
        compute: threads and intervals; not part of the identity.
        progress: told of (images done, images in all, metrics).

    Raises:
        InterruptedRun, DivergedError: see ``engine.train``.
    """
    torch.set_num_threads(compute.threads)
    identity = store.digest({"kind": job.node.kind, **job.identity})
    folder = job.node.root / "state" / f"{job.node.kind}-{identity[:IDENTITY_LENGTH]}"
    with store.one_writer(
        folder, on_wait=lambda: print(f"{job.node.label}: another job trains it; waiting", flush=True)
    ):
        finished = _read_finished(folder)
        if finished is None:
            step = job.make_step()
            kimg = compute.max_kimg_this_run
            schedule = Schedule(
                job.images,
                compute.log_every_updates,
                compute.checkpoint_every_updates,
                images_this_run=None if kimg is None else round(1000 * kimg),
            )
            outcome = train(step, folder, schedule, progress)
            files = job.export(step, folder)
            finished = {
                "files": {name: store.file_record(path, folder) for name, path in files.items()},
                "results": {
                    "nimg": outcome.nimg,
                    "seconds": round(outcome.seconds, 3),
                    **_from_journal(folder),
                    **job.measure(files),
                },
            }
            store.write_json(folder / "finished.json", finished)
    # beside the manifest, because the state stays on this machine when results are shared
    shared_journal = job.node.manifest.parent / "events.jsonl"
    store.write_with(shared_journal, lambda p: shutil.copyfile(folder / "events.jsonl", p))
    return store.Manifest.write(
        job.node.manifest,
        kind=job.node.kind,
        identity=identity,
        settings=job.node.settings,
        inputs=job.node.input_paths,
        files={name: folder / record["path"] for name, record in finished["files"].items()}
        | {"journal": shared_journal},
        results={**job.results, **finished["results"]},
    )


def _read_finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run, if its files are whole; else the newest checkpoint makes them again."""
    path = folder / "finished.json"
    if not path.exists():
        return None
    try:
        record = store.read_json(path)
        for file in record["files"].values():
            store.verify_sha256(folder / file["path"], file["sha256"])
    except (MsdError, KeyError) as e:
        print(f"{folder.name}: not adopted: {e}", flush=True)
        path.unlink()
        return None
    return record


def _from_journal(folder: Path) -> dict[str, Any]:
    path = folder / "events.jsonl"
    curves = journal.metrics(path)
    attempts = sum(event["event"] == "start" for event in journal.read(path))
    return {"attempts": attempts, "metrics": curves[max(curves)] if curves else {}}
