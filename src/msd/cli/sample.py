"""``msd sample`` and ``msd pipeline``: images of a class or a prompt, and students as diffusers pipelines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msd.cli.actions import texts
from msd.cli.options import add_configuration, plan_of, positive
from msd.errors import ConfigError, MissingFileError


def sample(arguments: argparse.Namespace) -> None:
    import torch

    from msd.bundle.text import TextBundle, open_bundle
    from msd.data.archive import to_uint8
    from msd.data.grid import save_grid
    from msd.draws import noise_of_images

    folder, count, tiny = _folder(arguments), arguments.n, arguments.decoder == "tiny"
    bundle = open_bundle(folder)
    decode = bundle.decoding(tiny)
    noise = noise_of_images(arguments.seed, 0, count, bundle.noise_shape)
    if arguments.prompt is None:
        cond, what = torch.full((count,), arguments.class_id), f"class {arguments.class_id}"
        owner, images = bundle.owners(cond[:1]).item(), decode(bundle.draw(noise, cond))
    elif isinstance(bundle, TextBundle):
        images, owners = bundle.draw_prompts([arguments.prompt] * count, noise, tiny)
        what, owner = repr(arguments.prompt), owners[0]
    else:
        raise ConfigError("These students know classes, no prompts.", where=str(folder), todo="Give --class.")
    save_grid(to_uint8(images).numpy(), arguments.out)
    print(f"{arguments.out}: {count} images of {what} by student {owner}, NFE {bundle.nfe}")


def pipeline(arguments: argparse.Namespace) -> None:
    from msd.bundle.pipeline import write_pipeline
    from msd.bundle.text import COMPONENTS, TextBundle, open_bundle
    from msd.networks.latent import LatentDenoiser

    bundle = open_bundle(arguments.bundle)
    if not isinstance(bundle, TextBundle) or bundle.sampler is not None:
        raise ConfigError(
            "Only one-step students of text to image make a diffusers pipeline.", where=str(arguments.bundle)
        )
    for k, student in enumerate(bundle.networks):
        assert isinstance(student, LatentDenoiser)
        folder = arguments.out / f"student-{k}"
        write_pipeline(student, bundle.folder / COMPONENTS, folder)
        print(f"{folder}: StableDiffusionPipeline, num_inference_steps=1, guidance_scale=0")


def _folder(arguments: argparse.Namespace) -> Path:
    """Of the bundle that is named."""
    if arguments.bundle is not None:
        return Path(arguments.bundle)
    if arguments.variant is None:
        raise ConfigError("Nothing to draw from.", todo="Give --variant NAME or --bundle FOLDER.")
    node = plan_of(arguments).variant(arguments.variant).bundle
    if not node.manifest.exists():
        raise MissingFileError(
            f"Variant {arguments.variant!r} is not trained yet.",
            where=str(node.manifest),
            todo=f"Run: snakemake --profile local {node.manifest}",
        )
    return node.manifest.parent


def register(commands: Any) -> None:
    """Add ``msd sample``."""
    about = "draw images of a class or of a prompt by the student that owns it"
    examples = [
        "msd sample --variant msd4 --class 3 --n 16 --out three.png",
        "msd sample --bundle out/ --class 3 --out three.png",
        'msd sample --bundle out/ --prompt "a handwritten three" --n 4 --out three.png',
    ]
    parser: argparse.ArgumentParser = commands.add_parser("sample", help=about, **texts(about, examples))
    parser.set_defaults(run=sample)
    parser.add_argument("--variant", help="a variant of the configuration")
    parser.add_argument("--bundle", type=Path, help="or: a folder written by `msd bundle`")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--class", type=int, dest="class_id", help="the class to draw, or the number of a known prompt")
    what.add_argument("--prompt", help="what to draw, for students of text to image")
    parser.add_argument("--n", type=positive, default=16, help="how many images (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--decoder",
        choices=["full", "tiny"],
        default="full",
        help="tiny: by the small autoencoder of `text.tiny_decoder`, sooner (default: full)",
    )
    parser.add_argument("--out", type=Path, required=True, help="a picture file, e.g. three.png")
    add_configuration(parser)

    about = "write each student of a bundle of text to image as a diffusers pipeline"
    parser = commands.add_parser("pipeline", help=about, **texts(about, ["msd pipeline out/ pipelines/"]))
    parser.set_defaults(run=pipeline)
    parser.add_argument("bundle", type=Path, help="a folder written by `msd bundle`")
    parser.add_argument("out", type=Path, help="a folder that gets one folder for each student")
