"""Same command = start, resume, or nothing to do: a training job around the engine.

The state of a job lives in a folder named by its identity, the digest of everything that decides the resulting bits.
The declared output is a manifest, written last. Two jobs of one identity train once; the second adopts the result.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msd import ranks, store
from msd.config import Compute
from msd.draws import Draws
from msd.errors import MsdError, OutOfMemoryError
from msd.plan import Node
from msd.training import journal
from msd.training.engine import Hooks, Outcome, Progress, Schedule, resolve_device, train
from msd.training.lease import Lease
from msd.training.signals import StopRequest
from msd.training.step import Step

IDENTITY_LENGTH = 16


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        node: the piece of work of the plan.
        identity: everything that decides the resulting bits, apart from the node's kind.
        images: how many to train on.
        batch_size: images of an update.
        make_step: micro-batch (None: the whole batch at once) → the step; called only if there is something to do.
        save: (network, path, its weights by name): write a network to use.
        results: further results for the manifest.
        further: step → name → network to keep beside its averages, for the stage that goes on from here.
        micro_batch: gives the one to begin with, if the configuration names none; None: the whole batch.
        measure: (name → file of the networks) → results that need the finished networks.
    """

    node: Node
    identity: dict[str, Any]
    images: int
    batch_size: int
    make_step: Callable[[int | None], Step]
    save: Callable[[Any, Path, dict[str, Tensor]], None]
    results: dict[str, Any]
    further: Callable[[Any], dict[str, nn.Module]] = lambda step: {}
    micro_batch: Callable[[], int | None] = lambda: None
    measure: Callable[[dict[str, Path]], dict[str, Any]] = lambda files: {}

    def export(self, step: Step, folder: Path) -> dict[str, Path]:
        """Write the averaged networks; those of a step without averages as they are."""
        files: dict[str, Path] = {}
        for name, ema in step.emas.items():
            with ema.applied() as net:
                files |= self.write({name: net}, folder)
        return files or self.write(step.networks(), folder)

    def write(self, nets: dict[str, nn.Module], folder: Path) -> dict[str, Path]:
        """Write networks under their names; all processes have to take part."""
        files = {name: folder / f"{name.replace('_', '-')}.safetensors" for name in nets}
        for name, net in nets.items():
            state = ranks.whole_state(net.state_dict())
            if ranks.is_first():
                self.save(net, files[name], state)
        return files


def draws_of_process(seed: int, device: torch.device, micro_batch: int | None) -> Draws:
    """The random streams of this one of the processes that train together."""
    return Draws(seed, device, rank=ranks.rank(), world=ranks.world(), micro_batch=micro_batch)


def state_folder(node: Node, identity: dict[str, Any]) -> tuple[str, Path]:
    """The digest of what decides a job's resulting bits, and the folder of its state."""
    sha256 = store.digest({"kind": node.kind, **identity})
    return sha256, node.root / "state" / f"{node.kind}-{sha256[:IDENTITY_LENGTH]}"


@contextlib.contextmanager
def alone(
    node: Node, compute: Compute, identity: dict[str, Any]
) -> Iterator[tuple[Path, Callable[[], None], Callable[[], str | None]]]:
    """For work in shards: its state's folder, what to call before every rename, and why to stop, if there is a reason.

    One writer at a time; another job of the same identity waits.
    """
    torch.set_num_threads(compute.threads)
    _, folder = state_folder(node, identity)
    waiting = f"{node.label}: another job makes them; waiting"
    with (
        Lease(folder, on_wait=lambda: print(waiting, flush=True), work=str(node.manifest)) as lease,
        StopRequest() as stop,
    ):
        yield folder, lease.check, lambda: stop.requested


def run_job(job: Job, compute: Compute, progress: Progress) -> store.Manifest:
    """Train, or go on, or adopt what is there; then write the manifest.

    Args:
        job: what to train.
        compute: threads, memory and intervals; not part of the identity.
        progress: told of (images done, images in all, metrics).

    Raises:
        InterruptedRun, DivergedError, StorageError, LeaseLostError: see ``engine.train``.
        OutOfMemoryError: see ``_train``.
    """
    torch.set_num_threads(compute.threads)
    ranks.join(resolve_device(compute.device))
    identity, folder = state_folder(job.node, job.identity)
    with _held(folder, job.node) as guard:
        finished = ranks.from_first(_read_finished(folder) if ranks.is_first() else None)
        if finished is None:
            step, outcome = _train(job, compute, folder, Hooks(progress, guard, job.export))
            guard()
            files = job.export(step, folder) | job.write(job.further(step), folder)
            finished = _finish(job, folder, files, outcome, guard) if ranks.is_first() else None
        if ranks.is_first():
            assert finished is not None
            _write_manifest(job, identity, folder, finished)
    ranks.from_first(None)  # wait for it
    return store.Manifest.read(job.node.manifest)


@contextlib.contextmanager
def _held(folder: Path, node: Node) -> Iterator[Callable[[], None]]:
    """Hold the folder for all processes that train together; gives what is to be called before a rename."""
    if not ranks.is_first():
        yield lambda: None
        return
    waiting = f"{node.label}: another job trains it; waiting"
    with Lease(folder, on_wait=lambda: print(waiting, flush=True), work=str(node.manifest)) as lease:
        yield lease.check


def _train(job: Job, compute: Compute, folder: Path, hooks: Hooks) -> tuple[Step, Outcome]:
    """Train; where the memory does not suffice, once more with half the micro-batch, which is recorded for good.

    Raises:
        OutOfMemoryError: half was too much as well, or processes that train together have to be started anew.
    """
    kimg = compute.max_kimg_this_run
    schedule = Schedule(
        job.images,
        compute.log_every_updates,
        compute.checkpoint_every_updates,
        images_this_run=None if kimg is None else round(1000 * kimg),
        snapshot_every=compute.snapshot_every_updates,
        give_up_after=compute.give_up_after_skipped,
    )
    record = folder / "micro-batch.json"

    def attempt(micro_batch: int | None) -> tuple[Step, Outcome]:
        step = job.make_step(micro_batch)
        return step, train(step, folder, schedule, hooks)

    if record.exists():
        halved = store.read_json(record)["after"]
    else:
        before = compute.micro_batch or job.micro_batch()
        try:
            return attempt(before)
        except torch.OutOfMemoryError as e:
            rows = -(-job.batch_size // ranks.world())
            before = min(before or rows, rows)
            if before == 1:
                raise _out_of_memory(folder, "not even for one image at once", e, "") from None
            halved, why = before // 2, str(e).splitlines()[0]
        store.write_json(record, {"before": before, "after": halved, "why": why}, hooks.guard)
        journal.Journal(folder, guard=hooks.guard).write("micro_batch", before=before, after=halved, why=why)
        print(f"{job.node.label}: out of memory; from now on {halved} images at once instead of {before}", flush=True)
        if ranks.world() > 1:
            raise OutOfMemoryError(
                "One of the processes ran out of memory.",
                where=str(folder),
                why=why,
                todo=f"Run the same command again: it goes on with {halved} images at once instead of {before}.",
            )
        gc.collect()
        torch.cuda.empty_cache()
    try:
        return attempt(halved)
    except torch.OutOfMemoryError as e:
        todo = f" or a smaller compute.micro_batch, and remove {record}"
        raise _out_of_memory(folder, f"also not for {halved} images at once", e, todo) from None


def _out_of_memory(folder: Path, what: str, error: torch.OutOfMemoryError, further: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        "The memory does not suffice.",
        where=str(folder),
        why=f"{what}: {str(error).splitlines()[0]}",
        todo=f"Set compute.gradient_checkpointing{further}.",
    )


def _finish(
    job: Job, folder: Path, files: dict[str, Path], outcome: Outcome, guard: Callable[[], None]
) -> dict[str, Any]:
    """Write the record that adopts the exported networks."""
    picture = folder / "picture.png"
    finished = {
        "files": {
            name: store.file_record(path, folder)
            for name, path in (files | ({"picture": picture} if picture.exists() else {})).items()
        },
        "results": {
            "nimg": outcome.nimg,
            "seconds": round(outcome.seconds, 3),
            **outcome.counts,
            "flops": outcome.flops,
            **_from_journal(folder),
            **job.measure(files),
        },
    }
    store.write_json(folder / "finished.json", finished, guard)
    return finished


def _write_manifest(job: Job, identity: str, folder: Path, finished: dict[str, Any]) -> None:
    store.sweep(job.node.manifest.parent)
    # beside the manifest, because the state stays on this machine when results are shared
    shared_journal = job.node.manifest.parent / "events.jsonl"
    store.write_with(shared_journal, lambda p: shutil.copyfile(folder / "events.jsonl", p))
    store.Manifest.write(
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
