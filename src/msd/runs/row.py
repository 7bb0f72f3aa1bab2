"""One tracked run, whatever the tracker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINISHED, RUNNING, SCHEDULED, FAILED, KILLED = "FINISHED", "RUNNING", "SCHEDULED", "FAILED", "KILLED"
STATUS = {"done": FINISHED, "running": RUNNING, "stopped": SCHEDULED, "failed": FAILED, "lost": KILLED}
BUNDLE = "bundle.sha256"  # the tag that tells weights of the same settings apart


@dataclass(frozen=True)
class Row:
    """One tracked run.

    Attributes:
        key: finds the run again; carries digests, so that changed settings give a new run.
        status: FINISHED, RUNNING, SCHEDULED (stopped, to be gone on with), FAILED or KILLED.
        start, end: unix seconds; of what has not ended, the end is its last sign of life.
        params: those known so far; they never change.
        metrics: final numbers; those that are not known are None.
        tags: those that are not known are None; an empty one is to be taken back.
        curves: images seen → metrics, with ``nimg`` among them.
        times: images seen → unix seconds.
        artifacts: name → file, or text.
        bundle: the folder with the networks of a finished variant.
        image_shape: (C, H, W) of what the bundle draws.
    """

    key: str
    name: str
    status: str
    start: float
    end: float
    params: dict[str, Any]
    metrics: dict[str, float | None]
    tags: dict[str, str | None]
    curves: dict[int, dict[str, float | None]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    artifacts: dict[str, Path | str] = field(default_factory=dict)
    bundle: Path | None = None
    image_shape: tuple[int, ...] = ()
