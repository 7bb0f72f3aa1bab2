"""``msd status``: one line for every piece of training."""

from __future__ import annotations

import argparse
from typing import Any

from msd import slurm
from msd.cli.options import add_configuration, plan_of
from msd.slurm import Queued
from msd.standing import Standing, standing_of

COLUMNS = ("what", "state", "images", "speed", "left", "job", "node", "heard", "")
LEGEND = """\
left: at this speed. heard: since the last sign of life. job: of SLURM, ? if its queue does not have it any more.
lost: its process is gone without a word, or its machine silent; the workflow's next call goes on with it."""


def register(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "status",
        help="how far every student is, where it runs, what it failed of",
        description="One line for every piece of training of the experiment.",
        epilog=f"{LEGEND}\nexamples:\n  msd status\n  msd status --configfile experiments/smoke.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser)
    parser.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> None:
    standings, queue = standing_of(plan_of(arguments)), slurm.queue()
    rows = [COLUMNS, *(_row(standing, queue) for standing in standings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    states = [standing.state for standing in standings]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


def _row(standing: Standing, queue: dict[str, Queued] | None) -> tuple[str, ...]:
    active = standing.state in ("running", "lost")
    return (
        standing.node.label,
        standing.state,
        f"{standing.done:,} of {standing.total:,}",
        f"{standing.speed:.0f} img/s" if active and standing.speed else "",
        _time(standing.seconds_left) if active else "",
        _job(standing, queue) if active else "",
        (standing.host or "") if active else "",
        _time(standing.heartbeat) if active else "",
        standing.error or "",
    )


def _job(standing: Standing, queue: dict[str, Queued] | None) -> str:
    if standing.job is None:
        return ""
    if queue is None:
        return standing.job
    return f"{standing.job} {queue[standing.job].state.lower()}" if standing.job in queue else f"{standing.job} ?"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
