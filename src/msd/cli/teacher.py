"""``msd teacher list`` and ``msd teacher convert``: what is known, and foreign weights as a file of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from msd.cli.actions import CommandParser
from msd.config import nearest
from msd.errors import ConfigError
from msd.store import verify_sha256


def show_known(arguments: argparse.Namespace) -> None:
    from msd.registry import table

    print(table())


def convert(arguments: argparse.Namespace) -> None:
    from msd.networks.convert import convert

    if arguments.sha256 is not None:
        verify_sha256(arguments.source, arguments.sha256)
    if arguments.source.is_dir():
        if arguments.sha256 or arguments.like:
            raise ConfigError("--sha256 and --like are for files.", where=str(arguments.source), todo="Leave them out.")
        from msd.networks.diffusers_files import adopt_pipeline

        origin = adopt_pipeline(arguments.source, arguments.out)
        print(f"{arguments.out}: {origin['parameters']:,} parameters, sha256 {origin['weights']['sha256']}")
        return
    net = None
    if arguments.like is None and arguments.source.suffix == ".bin":
        raise ConfigError(
            "A checkpoint does not say which architecture it has.",
            where=str(arguments.source),
            todo="Name a known teacher that has the same: --like edm-imagenet-64x64-cond-adm",
        )
    if arguments.like is not None:
        from msd.networks.dmd2_checkpoint import load_dmd2_student
        from msd.networks.published import published_network
        from msd.registry import KNOWN

        of_pixels = [name for name, teacher in KNOWN.items() if teacher.classes is not None]
        if arguments.like not in of_pixels:
            raise ConfigError(
                f"There is no known teacher of pixels {arguments.like!r}{nearest(arguments.like, of_pixels)}",
                where="--like",
                todo="`msd teacher list` shows them.",
            )
        net = load_dmd2_student(arguments.source, *published_network(KNOWN[arguments.like]))
    origin = convert(arguments.source, arguments.out, net)
    print(f"{arguments.out}: {origin['parameters']:,} parameters, sha256 {origin['weights']['sha256']}")


def register(teacher: CommandParser) -> None:
    """Add the actions of ``msd teacher``."""
    teacher.add_action("list", show_known, "list the known teachers and their licences", ["msd teacher list"])
    parser = teacher.add_action(
        "convert",
        convert,
        "write an EDM pickle, a DMD2 checkpoint or a diffusers folder as safetensors, running nothing in it",
        [
            "msd teacher convert edm-imagenet-64x64-cond-adm.pkl teacher.safetensors",
            "msd teacher convert stable-diffusion-v1-5/ teacher.safetensors",
            "msd teacher convert pytorch_model.bin student.safetensors --like edm-imagenet-64x64-cond-adm",
        ],
    )
    parser.add_argument("source", type=Path, help="the file or diffusers folder to read")
    parser.add_argument("out", type=Path, help="the safetensors file to write; its origin goes beside it, as .json")
    parser.add_argument("--sha256", metavar="HEX", help="refuse the source unless this is its digest")
    parser.add_argument("--like", metavar="NAME", help="a DMD2 checkpoint: the known teacher whose network it has")
