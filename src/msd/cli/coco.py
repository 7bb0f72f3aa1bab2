"""``msd coco``: COCO 2014's pictures and captions, fetched, verified and unpacked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msd.cli.actions import texts
from msd.cli.progress import ProgressDisplay

FOLDER = Path("data/coco14")


def coco(arguments: argparse.Namespace) -> None:
    from msd.text.coco import COCO14, make_coco

    manifest = make_coco(
        arguments.folder,
        COCO14,
        train=arguments.train,
        keep_zips=arguments.keep_zips,
        progress=lambda half: ProgressDisplay(f"unpack {half}"),
    )
    for half, seen in manifest.results.items():
        print(f"{arguments.folder / half}: {seen['images']:,} pictures")


def register(commands: Any) -> None:
    """Add the subcommand."""
    about = "fetch COCO 2014: pictures, captions, and the 30,000 captions of the evaluation (docs/data.md)"
    examples = ["msd coco", "msd coco data/coco14 --train"]
    parser: argparse.ArgumentParser = commands.add_parser("coco", help=about, **texts(about, examples))
    parser.add_argument(
        "folder", type=Path, nargs="?", default=FOLDER, help=f"what is whole in it is kept (default: {FOLDER})"
    )
    parser.add_argument("--train", action="store_true", help="the training half too: 13.5 GB more")
    parser.add_argument("--keep-zips", action="store_true", help="leave what was downloaded in the download folder")
    parser.set_defaults(run=coco)
