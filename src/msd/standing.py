"""How far each piece of training has come, read from what it leaves behind: manifests, journals, leases, failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msd import failures
from msd.plan import Node, Plan
from msd.store import Manifest
from msd.training import journal, lease

SILENCE = 180  # seconds; a shared file system tells of a touch late, and clocks differ
KINDS = ("teacher", "classifier", "tsm", "dm", "adm")


@dataclass(frozen=True)
class Standing:
    """Of one node.

    Attributes:
        state: ``done``; ``running``; ``stopped``, to be gone on with; ``failed``; ``lost``, its process is gone without
            a word; ``waiting``, not begun.
        folder: of its training state; None if there is none.
        done, total: images trained on.
        speed: images per second when last measured.
        job: id of its SLURM job.
        host: the machine it ran on last.
        heartbeat: seconds since its last sign of life.
        error: what it failed of.
    """

    node: Node
    state: str
    folder: Path | None
    done: int
    total: int
    speed: float | None
    job: str | None
    host: str | None
    heartbeat: float | None
    error: str | None

    @property
    def seconds_left(self) -> float | None:
        """Until it is done, if it goes on as it did."""
        return (self.total - self.done) / self.speed if self.speed else None


def standing_of(plan: Plan) -> list[Standing]:
    """One for each node that is trained, in the order in which a student passes through them."""
    holders = dict(_holders(plan.root))
    nodes = [n for n in plan if n.kind in KINDS and n.images]
    return [_standing(node, holders.get(str(node.manifest))) for node in sorted(nodes, key=_order)]


def _order(node: Node) -> tuple[str, int, str]:
    return node.label.split(" ")[0], KINDS.index(node.kind), node.label


def _holders(root: Path) -> Iterator[tuple[str, tuple[Path, dict[str, Any], float]]]:
    """Manifest → folder of its state, record of its last holder, unix seconds of the last sign of life."""
    found = [(folder, held) for folder in (root / "state").glob("*") if (held := lease.newest(folder))]
    for folder, held in sorted(found, key=lambda item: item[1][1]):  # of several of one manifest the last one counts
        yield held[0].get("work", ""), (folder, *held)


def _standing(node: Node, held: tuple[Path, dict[str, Any], float] | None) -> Standing:
    failure, total = failures.read(node), node.images
    folder, holder, touched = held or (None, {}, None)
    done, speed = _progress(folder / "events.jsonl") if folder else (0, None)
    heartbeat = None if touched is None else max(time.time() - touched, 0.0)
    if node.manifest.exists():
        done, state = Manifest.read(node.manifest).results.get("nimg", total), "done"
    elif held is not None and not holder.get("released"):
        state = "lost" if lease.is_gone(holder, heartbeat or 0.0, SILENCE) else "running"
    elif failure is not None:
        state = "failed"
    else:
        state = "stopped" if held else "waiting"
    return Standing(
        node=node,
        state=state,
        folder=folder,
        done=done,
        total=total,
        speed=speed,
        job=holder.get("slurm_job"),
        host=holder["machine"][0] if holder else None,
        heartbeat=heartbeat,
        error=f"{type(failure).__name__}: {failure.what}" if failure and state != "done" else None,
    )


def _progress(path: Path) -> tuple[int, float | None]:
    """Images so far, and images per second when last measured."""
    nimg, speed = 0, None
    if path.exists():
        for event in journal.read(path):
            nimg = event.get("nimg", nimg)
            speed = event.get("speed", {}).get("images_per_second", speed)
    return nimg, speed
