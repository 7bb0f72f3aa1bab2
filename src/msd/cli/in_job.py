"""What a stage does about the SLURM job that it runs in: it stops in time, comes back, repeats no hopeless try."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from msd import failures, slurm
from msd.errors import ConfigError, InterruptedRun, LeaseLostError, MsdError
from msd.plan import Node
from msd.store import Manifest
from msd.training.signals import ENOUGH, STOP_AT, TIME_IS_UP

CLOCKS_DIFFER = 10  # seconds at most, and the time of an update, between processes of one job
UNTIL_ENDED = 900  # seconds to wait for that; a preempted job may be given some minutes


def run_stage(node: Node, spare_seconds: int, stage: Callable[[], Manifest]) -> Manifest:
    """Run a stage; outside of a job only its failure is recorded.

    Args:
        node: what the stage makes.
        spare_seconds: a job saves so long before its walltime is over.
        stage: does the work.

    Raises:
        MsdError: the stage's, or the one that it ended with before in this call of the workflow.
        ConfigError: the job is so short that nothing would be left of it, or was started several times over.
    """
    if slurm.job_id():
        _check_tasks()
        _limit_time(spare_seconds)
        before = failures.read(node)
        if before is not None and before.repeats:
            print(f"Not tried again; the next call of Snakemake does, or remove {failures.path_of(node)}.", flush=True)
            raise before
    failures.forget(node)
    try:
        return stage()
    except InterruptedRun as e:
        if slurm.job_id():
            _await_end(e.why)
        raise
    except LeaseLostError:
        raise  # the work is well, in other hands
    except Exception as e:
        with contextlib.suppress(OSError):  # a full disk, which is what ``e`` tells of
            failures.record(node, e if isinstance(e, MsdError) else MsdError(f"{type(e).__name__}: {e}"))
        raise


def _check_tasks() -> None:
    """SLURM must start one task; torchrun starts further processes."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks != 1:
        raise ConfigError(
            f"SLURM has started this job {tasks} times at once.",
            todo="Leave out `tasks` in workflow/profiles/slurm/config.yaml; torchrun starts one process per GPU.",
        )


def _limit_time(spare_seconds: int) -> None:
    end = slurm.end_of_job()
    if end is None or STOP_AT in os.environ:
        return
    if end - time.time() < spare_seconds:
        raise ConfigError(
            "The walltime is too short.",
            where="runtime in workflow/profiles/slurm/config.yaml",
            why=f"{end - time.time():.0f} s are left, and {spare_seconds} s of them are to spare for saving",
            todo="Ask for more, or lower compute.spare_seconds.",
        )
    os.environ[STOP_AT] = str(end - spare_seconds)


def _await_end(reason: str) -> None:
    """Do not fail a job that SLURM is about to start again; if it is the walltime that is over, ask for that first."""
    if reason in (ENOUGH, "SIGINT"):
        return
    # another process may have been the first to see that the time is up
    over = reason in (TIME_IS_UP, "SIGUSR2") or time.time() > float(os.environ.get(STOP_AT, "inf")) - CLOCKS_DIFFER
    if over and os.environ.get("RANK", "0") == "0" and not slurm.requeue():
        return
    print(f"Saved ({reason}); waiting for SLURM to end this job.", flush=True)
    time.sleep(UNTIL_ENDED)
