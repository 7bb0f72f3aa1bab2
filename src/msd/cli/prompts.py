"""``msd prompts``: clean, embed, split and route prompts by hand, whatever the experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msd.cli.actions import CommandParser, texts
from msd.cli.options import positive
from msd.cli.progress import ProgressDisplay
from msd.errors import DataError
from msd.store import Manifest


def pack(arguments: argparse.Namespace) -> None:
    from msd.text.archive import write_prompts
    from msd.text.prompts import PromptReport

    manifest = write_prompts(
        arguments.source,
        arguments.out,
        format=arguments.format,
        column=arguments.column,
        strict=arguments.strict,
        keep_duplicates=arguments.keep_duplicates,
        limit=arguments.limit,
    )
    print(f"{arguments.out}: {PromptReport.of(manifest.results['report'])}")


def embed(arguments: argparse.Namespace) -> None:
    import torch

    from msd.text.archive import open_prompts
    from msd.text.embeddings import embed_prompts
    from msd.text.encoder import open_encoder
    from msd.training.engine import resolve_device
    from msd.training.signals import StopRequest

    torch.set_num_threads(arguments.threads)
    archive = open_prompts(Manifest.read(arguments.prompts / "manifest.json"))
    encoder = open_encoder(arguments.encoder, resolve_device(arguments.device), arguments.pooling)
    progress = ProgressDisplay(f"embed {arguments.prompts}")
    with StopRequest() as stop:
        results = embed_prompts(archive, encoder, arguments.out, stop=lambda: stop.requested, progress=progress).results
    print(
        f"{arguments.out}: {results['prompts']:,} prompts, {results['length']} tokens of {results['width']} numbers, "
        f"{results['truncated']:,} prompts were too long"
    )


def split(arguments: argparse.Namespace) -> None:

    from msd.config import TEXT_PARTITION
    from msd.partition.text_fit import fit_router
    from msd.partition.text_report import describe_parts
    from msd.store import write_json
    from msd.text.archive import open_prompts, texts
    from msd.text.embeddings import open_embeddings

    spec = TEXT_PARTITION.validate_python(
        {"kind": arguments.kind} | ({} if arguments.kind == "quadrants" else {"seed": arguments.seed})
    )
    manifest = Manifest.read(arguments.embeddings / "manifest.json")
    pooled = open_embeddings(manifest).pooled().numpy()
    archive = open_prompts(Manifest.read(arguments.prompts / "manifest.json"))
    if manifest.settings["prompts"] != archive.sha256:
        raise DataError(
            "These embeddings are of other prompts.", where=str(arguments.embeddings), todo="Embed them anew."
        )
    prompts = texts(archive)
    router = fit_router(pooled, spec, arguments.students, prompts)
    router.save(arguments.out)
    described = describe_parts(router, pooled, prompts)
    write_json(arguments.out / "parts.json", described | {"encoder": manifest.results["encoder"]})
    for k, part in enumerate(described["parts"]):
        words = ", ".join(term["term"] for term in part["terms"][:8])
        print(f"{k}: {part['size']:,} prompts; {words}")
    print(f"largest − smallest: {described['largest_minus_smallest_points']:.3f} percentage points")


def route(arguments: argparse.Namespace) -> None:
    from msd.partition.text_router import TextRouter
    from msd.text.encoder import open_encoder

    router = TextRouter.load(arguments.router)
    pooled = open_encoder(arguments.encoder, "cpu", arguments.pooling).encode(arguments.prompt).pooled.float().numpy()
    for prompt, owner in zip(arguments.prompt, router(pooled, arguments.prompt), strict=True):
        print(f"{owner}\t{prompt}")


def register(commands: Any) -> None:
    """Add ``msd prompts``."""
    about = "clean, embed, split and route prompts (docs/prompts.md)"
    prompts: CommandParser = commands.add_parser(
        "prompts", help=about, **texts(about, ["msd prompts pack captions_train2014.json coco/"])
    )
    prompts.set_defaults(run=lambda _: prompts.print_help())
    parser = prompts.add_action(
        "pack",
        pack,
        "read prompts of any format, clean them, and write an archive",
        ["msd prompts pack captions_train2014.json coco/", "msd prompts pack laion.parquet laion/ --column TEXT"],
    )
    parser.add_argument("source", type=Path, help="the file, or an LMDB folder")
    parser.add_argument("out", type=Path, help="the folder to write; it must hold no archive yet")
    parser.add_argument(
        "--format",
        choices=["txt", "jsonl", "parquet", "coco", "pickle", "lmdb"],
        help="where the name does not show it",
    )
    parser.add_argument("--column", metavar="NAME", help="of a table, where it is not caption, prompt or text")
    parser.add_argument("--strict", action="store_true", help="bytes that are no UTF-8 are an error")
    parser.add_argument(
        "--keep-duplicates", action="store_true", help="as an evaluation needs, whose captions have places"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N prompts")
    parser = prompts.add_action(
        "embed",
        embed,
        "hidden states and pooled vectors of an archive's prompts; run again, it goes on",
        ["msd prompts embed coco/ stable-diffusion-v1-5/ coco-embeddings/"],
    )
    parser.add_argument("prompts", type=Path, help="a folder written by `msd prompts pack`")
    parser.add_argument("encoder", type=Path, help="a diffusers folder, or one of a BERT sentence encoder")
    parser.add_argument("out", type=Path, help="a folder; what is whole in it is kept")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    _pooling(parser)
    parser = prompts.add_action(
        "split",
        split,
        "fit a router on an archive's embeddings and tell the parts",
        ["msd prompts split coco/ coco-embeddings/ router/ --kind quadrants"],
    )
    parser.add_argument("prompts", type=Path, help="a folder written by `msd prompts pack`")
    parser.add_argument("embeddings", type=Path, help="a folder written by `msd prompts embed`")
    parser.add_argument("out", type=Path, help="a folder for router.json, router.safetensors and parts.json")
    parser.add_argument(
        "--kind", choices=["quadrants", "text-kmeans", "hash"], default="quadrants", help="default: quadrants"
    )
    parser.add_argument("--students", type=positive, default=4, metavar="K", help="default: 4")
    parser.add_argument("--seed", type=int, default=0, help="of text-kmeans and hash (default: 0)")
    parser = prompts.add_action(
        "route",
        route,
        "say which student owns a prompt",
        ['msd prompts route router/ stable-diffusion-v1-5/ "a dog on a beach" "two pizzas"'],
    )
    parser.add_argument("router", type=Path, help="a folder written by `msd prompts split`, or a bundle")
    parser.add_argument("encoder", type=Path, help="the one whose embeddings were split")
    parser.add_argument("prompt", nargs="+", help="one or more")
    _pooling(parser)


def _pooling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pooling", choices=["prompt", "end", "all"], default="prompt", help="see text.pooling")
