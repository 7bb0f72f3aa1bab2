"""Several GPUs for one student: a stage starts itself again under torchrun, one process per GPU."""

from __future__ import annotations

import argparse
import os
import sys

from msd.errors import ConfigError


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many."""
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="share the work among N processes on this machine, one per GPU (0 or 1: this one alone)",
    )


def spread_over(arguments: argparse.Namespace) -> None:
    """Become torchrun with that many processes, or be one of them; alone, do nothing.

    Raises:
        ConfigError: torchrun was started with another number of processes.
    """
    wanted, world = getattr(arguments, "processes", 1), int(os.environ.get("WORLD_SIZE", 1))
    if wanted <= 1 or wanted == world:
        return
    if "WORLD_SIZE" in os.environ:
        raise ConfigError(
            f"{wanted} processes were asked for, and {world} run together.",
            todo="Give torchrun's --nproc-per-node and --processes the same number.",
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    if "SLURM_JOB_ID" in os.environ:  # SLURM tells every process itself, and torchrun would give them 30 s
        torchrun += ["--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT"]
    os.execv(sys.executable, [*torchrun, "--nproc-per-node", str(wanted), "-m", "msd", *sys.argv[1:]])
