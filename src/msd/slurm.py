"""SLURM as its own commands tell of it: the job that this process runs in, and the queue. Nothing here trains."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from msd.errors import ConfigError

PATIENCE = 60  # seconds for an answer; a controller that starts again needs some


@dataclass(frozen=True)
class Queued:
    """A job in the queue.

    Attributes:
        state: as SLURM calls it, RUNNING say.
        nodes: where it runs.
    """

    state: str
    nodes: str


def job_id() -> str | None:
    """Of the job that this process runs in."""
    return os.environ.get("SLURM_JOB_ID")


def end_of_job() -> float | None:
    """Unix seconds at which this job's walltime is over. None: there is no job, no limit, or no answer."""
    text = os.environ.get("SLURM_JOB_END_TIME") or _ask("squeue", "--noheader", "--jobs", job_id() or "", "-o", "%e")
    return float(text) if text and text.isdigit() else None


def requeue() -> bool:
    """Ask SLURM to end this job and to start it again later; whether it agreed."""
    return _ask("scontrol", "requeue", job_id() or "") is not None


def check(partitions: Iterable[str]) -> None:
    """Find out before anything is submitted whether it can be.

    Args:
        partitions: that jobs name; several may stand in one, with commas between them.

    Raises:
        ConfigError: SLURM is not here or does not answer, or it has no partition of one of these names.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "SLURM is not on this machine: there is no command `sbatch`.",
            todo="Go to a login node of the cluster, load its SLURM module, or use --profile local.",
        )
    text = _ask("sinfo", "--all", "--noheader", "-o", "%R")
    if text is None:
        raise ConfigError(
            "SLURM does not answer.",
            why=f"`sinfo` failed, or said nothing for {PATIENCE} s",
            todo="Try `sinfo` yourself; the same command goes on when SLURM is back.",
        )
    known = set(text.split())
    wanted = {name for names in partitions for name in names.split(",")}
    if wrong := sorted(wanted - known):
        raise ConfigError(
            f"The cluster has no partition {', '.join(wrong)}.",
            where="slurm_partition in workflow/profiles/slurm/config.yaml",
            todo=f"Choose from {', '.join(sorted(known))}.",
        )


def queue() -> dict[str, Queued] | None:
    """All jobs of this user by id. None: there is no SLURM here, or no answer."""
    text = _ask("squeue", "--noheader", "--me", "--array", "-o", "%A %T %N")
    if text is None:
        return None
    fields = [line.split() for line in text.splitlines()]
    return {job: Queued(state, " ".join(nodes)) for job, state, *nodes in fields}


def _ask(*command: str) -> str | None:
    """What a command of SLURM prints; None if it is not there, fails or does not answer."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
