"""The frozen parts around a text-conditional denoiser, and what they make of captions and images, once for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from msd import store
from msd.config import Compute
from msd.config.text import FolderEncoder, TinyEncoder
from msd.data.archive import LabelledImages, open_half
from msd.errors import MissingFileError
from msd.latent import TINY
from msd.latent.archive import SHARD, EncodedImages, LatentSource, write_latents
from msd.latent.autoencoder import FILES, Autoencoder, open_autoencoder
from msd.latent.lmdb import LmdbLatents
from msd.latent.tiny_decoder import open_tiny_decoder
from msd.networks.files import fill, read_safetensors
from msd.plan import Node
from msd.store import Manifest
from msd.teachers.autoencoder import AUTOENCODER_FORMAT
from msd.text.archive import texts
from msd.text.captions import prompts_of
from msd.text.embeddings import embed_prompts
from msd.text.encoder import open_encoder
from msd.text.encoder_files import copy_encoder
from msd.text.tiny import make_tiny_encoder
from msd.training.engine import Progress, resolve_device
from msd.training.job import alone
from msd.weights import OTHER_WEIGHTS, SUFFIXES, fetch_weights

FOLDERS = ("vae", "text_encoder", "tokenizer")  # of a diffusers pipeline
MEASURED = 1024  # images that the latents' scale is measured on


def make_components(node: Node, compute: Compute) -> Manifest:
    """Autoencoder, tokenizer and text encoder in a diffusers layout: made here, or found in a folder.

    Raises:
        MissingFileError: the folder lacks one of them.
        ConfigError: the tiny decoder belongs to another autoencoder.
    """
    torch.set_num_threads(compute.threads)
    folder = components_folder(node)
    if node.settings["source"] == "tiny":
        captions = Manifest.read(node.inputs["captions"].manifest)
        _write_encoder(node.settings["encoder"], captions, folder)
        _write_autoencoder(Manifest.read(node.inputs["autoencoder"].manifest), open_half(captions, "train"), folder)
    found = [path for name in FOLDERS for path in sorted((folder / name).glob("*")) if _is_needed(path)]
    files = {str(path.relative_to(folder)): path for path in found}
    if missing := [name for name in FOLDERS if not any(file.startswith(f"{name}/") for file in files)]:
        raise MissingFileError(
            "A diffusers folder lacks a part.", where=", ".join(str(folder / name) for name in missing)
        )
    if tiny := node.settings.get("tiny_decoder"):
        files |= _tiny_decoder(Path(tiny["path"]), folder)
    inputs = node.input_paths
    return Manifest.write(node.manifest, kind=node.kind, settings=node.settings, inputs=inputs, files=files)


def _write_encoder(settings: dict[str, Any], captions: Manifest, folder: Path) -> None:
    """The folders ``text_encoder/`` and ``tokenizer/``: made of the captions, or a copy."""
    if settings.get("source") == "folder":
        copied = FolderEncoder.model_validate(settings)
        copy_encoder(Path(copied.path), folder, copied.length)
    else:
        made = TinyEncoder.model_validate(settings)
        make_tiny_encoder(texts(prompts_of(captions)), folder, **made.model_dump())


def _tiny_decoder(place: Path, folder: Path) -> dict[str, Path]:
    """Its files under the names that a bundle gives them; opened once, to see that it belongs to the autoencoder."""
    open_tiny_decoder(place, folder / "vae")
    return {f"{TINY}/{name}": place / name for name in FILES}


def _is_needed(path: Path) -> bool:
    """Neither pickles nor other precisions of the same weights."""
    return path.is_file() and path.suffix in SUFFIXES and not any(part in path.name for part in OTHER_WEIGHTS)


def components_folder(node: Node) -> Path:
    """Where the parts lie: beside the manifest, where the configuration says, or where they were downloaded."""
    if node.settings["source"] in ("known", "hf"):
        return fetch_weights(node.settings)[0]
    return Path(node.settings["path"]) if node.settings["source"] == "folder" else node.manifest.parent


def _write_autoencoder(trained: Manifest, images: LabelledImages, folder: Path) -> None:
    """The folder ``vae/``; its scaling factor brings the latents of training images to unit variance."""
    path = trained.file("weights")
    tensors, description = read_safetensors(path, AUTOENCODER_FORMAT)
    net = AutoencoderKL(**description, scaling_factor=1.0)
    fill(net, tensors, path)
    x, _ = images.batch(torch.arange(min(MEASURED, len(images))))
    deviation = float(Autoencoder(net).encode(x).std())
    net.register_to_config(scaling_factor=1 / deviation)
    net.save_pretrained(folder / "vae", safe_serialization=True)


def embed_captions(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Hidden states and pooled vectors of all prompts."""
    captions, _, folder = _inputs(node)
    encoder = open_encoder(folder, resolve_device(compute.device), node.settings["pooling"])
    with alone(node, compute, {"prompts": captions.results["sha256"], "encoder": encoder.sha256}) as (_, guard, stop):
        out, known = node.manifest.parent, prompts_of(captions)
        return embed_prompts(known, encoder, out, inputs=node.input_paths, guard=guard, stop=stop, progress=progress)


def encode_latents(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Latents of the training images, or those that the data bring, and the number of each one's caption."""
    captions, components, folder = _inputs(node)
    source: LatentSource
    if "latents" in captions.body["files"]:
        source = LmdbLatents(captions.file("latents"))
        identity = {"latents": captions.sha256("latents"), "shard": SHARD}
    else:
        source = EncodedImages(open_half(captions, "train"), open_autoencoder(folder, resolve_device(compute.device)))
        files = {name: components.sha256(name) for name in components.body["files"] if name.startswith("vae/")}
        identity = {"images": captions.sha256("train-images"), "autoencoder": files, "shard": SHARD}
    with alone(node, compute, identity) as (_, guard, stop):
        digest, out = store.digest(identity), node.manifest.parent
        shards = write_latents(source, digest, out, guard=guard, stop=stop, progress=progress)
        return Manifest.write(
            node.manifest,
            kind=node.kind,
            settings=node.settings,
            inputs=node.input_paths,
            files={**shards.files, "captions": captions.file("train-labels")},
            results={
                "images": len(source),
                "image_shape": list(source.image_shape),
                "sha256": store.digest([digest, captions.results["sha256"]]),
            },
            identity=digest,
        )


def _inputs(node: Node) -> tuple[Manifest, Manifest, Path]:
    """The captions, the components, verified, and their folder."""
    components = Manifest.read(node.inputs["components"].manifest)
    for name in components.body["files"]:
        components.file(name)
    captions = Manifest.read(node.inputs["captions"].manifest)
    return captions, components, components_folder(node.inputs["components"])
