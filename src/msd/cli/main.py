"""The ``msd`` command: every rule of the workflow is one call of it, and each is usable by hand."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence

from msd import __version__
from msd.cli import coco, data, network, plan, products, prompts, sample, stages, status, teacher, toy
from msd.cli.actions import CommandParser
from msd.errors import MsdError


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="msd",
        description="Multi-Student Distillation: K one-step students of one diffusion teacher (arXiv 2410.23274).",
        epilog="The stages are rules of the workflow: `snakemake all` runs them all. Exit codes: docs/errors.md.",
    )
    parser.add_argument("--version", action="version", version=f"msd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=CommandParser)
    stages.register(commands)
    data.register(commands.choices["data"])
    teacher.register(commands.choices["teacher"])
    network.register(commands)
    plan.register(commands)
    status.register(commands)
    products.register(commands)
    prompts.register(commands)
    coco.register(commands)
    sample.register(commands)
    toy.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    gc.set_threshold(50_000, 10, 10)  # importing PyTorch makes so many objects that the usual one costs a tenth of it
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except MsdError as e:
        print(f"msd: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        where = e.filename2 or e.filename  # of a rename, its target
        print(
            f"msd: {type(e).__name__}: {e.strerror or e}{f': {where}' if where else ''}"
            " (check the path, its permissions and the room on its disk, then run the same command again)",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
