"""How pieces of work ended that did not end well: one small file each, beside the training state.

``msd status`` shows them. In a SLURM job an error that the same call would end in again is repeated from its file at
once, so that a workflow's retries do not spend hours on it. A new call of Snakemake forgets them and tries again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from msd import errors, slurm, store
from msd.errors import MsdError
from msd.plan import Node


def path_of(node: Node) -> Path:
    """Where a node's failure is told."""
    return node.root / "state" / "failures" / f"{node.kind}-{node.digest}.json"


def record(node: Node, error: MsdError) -> None:
    """Tell of a failure."""
    store.write_json(
        path_of(node),
        {
            "manifest": str(node.manifest),
            "error": type(error).__name__,
            "exit_code": error.exit_code,
            **{name: getattr(error, name) for name in ("what", "where", "why", "todo")},
            "time": round(time.time(), 3),
            "job": slurm.job_id(),
        },
    )


def forget(node: Node) -> None:
    """Work on it begins anew."""
    path_of(node).unlink(missing_ok=True)


def forget_all(root: Path) -> None:
    """All work of an experiment gets another try.

    Args:
        root: folder of its results.
    """
    shutil.rmtree(root / "state" / "failures", ignore_errors=True)


def read(node: Node) -> MsdError | None:
    """The failure that is told of; None: there is none."""
    path = path_of(node)
    if not path.exists():
        return None
    try:
        told = store.read_json(path)
        kind: type[MsdError] = getattr(errors, told["error"])
        return kind(told["what"], where=told["where"], why=told["why"], todo=told["todo"])
    except (MsdError, KeyError, AttributeError):
        return None  # broken: as if it were not there
