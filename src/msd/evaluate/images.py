"""Images that were made elsewhere, through the same protocol as a row of the table: a folder, a zip or an npz file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msd.data.images import ImageSource
from msd.errors import ConfigError, MissingFileError
from msd.evaluate.clip_score import open_clip_model
from msd.evaluate.metrics import Features
from msd.evaluate.protocol import Network, RealImages, Reference, Ruler, protocol_digest, summary
from msd.evaluate.reference import features_of, open_images, reference_in_files, reference_of
from msd.evaluate.statistics import Statistics
from msd.plan import Node, Plan
from msd.store import Manifest, sha256_file
from msd.text.measured import read_captions
from msd.training.engine import Progress
from msd.weights import fetch_weights


def evaluate_images(
    path: Path, plan: Plan, reference: Path | None, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """Measure images by the protocol of a plan.

    Args:
        path: of the images, as many as one or more whole blocks of the protocol.
        reference: images, or statistics in EDM's layout, to compare with; None: the protocol's own reference.

    Returns:
        Plain JSON: the protocol and its digest, what was measured, and the metrics.

    Raises:
        ConfigError: there are more or fewer images than the protocol says.
        MissingFileError: a network or the experiment's data are not there yet.
    """
    protocol = plan.experiment.evaluation.protocol
    ruler = Ruler(protocol, networks_of(plan), device, plan.root / "state" / "reference")
    source = open_images(path)
    blocks, rest = divmod(len(source), protocol.images)
    if rest or not 1 <= blocks <= protocol.blocks:
        raise ConfigError(
            f"The protocol is for {protocol.images:,} images, in {protocol.blocks} blocks at most.",
            where=str(path),
            why=f"there are {len(source):,}",
            todo=f"Make as many, or measure by another recipe: --config evaluation.protocol.images={len(source)}.",
        )
    features, sha256, clip = _seen(source, ruler, device, progress)
    compared = _reference(ruler, plan, reference)
    found, half = [], f"{protocol.reference.half} half of {plan.experiment.data.source}"
    for block in range(blocks):
        rows = slice(block * protocol.images, (block + 1) * protocol.images)
        found.append(ruler.scores({name: f[rows] for name, f in features.items()}, compared.real))
    return {
        "protocol_digest": protocol_digest(protocol),
        "protocol": protocol.model_dump(mode="json"),
        "images": {"path": str(path), "count": len(source), "pixels_sha256": sha256},
        "reference": str(reference or protocol.reference.images or half),
        "metric": ruler.record(compared) | {"blocks": blocks},
        "metrics": summary(found, protocol.name) | ({} if clip is None else {"clip_score": clip}),
        "blocks": found,
    }


def networks_of(plan: Plan) -> dict[str, Network]:
    """The feature networks of a plan's protocol: those made for it, or fetched.

    Raises:
        MissingFileError: one has to be trained first.
    """
    nodes = [plan.features] + ([plan.second] if plan.second else [])
    return {name: _network(node) for name, node in zip(plan.experiment.evaluation.protocol.spaces, nodes, strict=True)}


def _network(node: Node) -> Network:
    if node.manifest.exists():
        manifest = Manifest.read(node.manifest)
        return Network(manifest.file("weights"), manifest.sha256("weights"))
    if node.settings["source"] == "train":
        raise MissingFileError(
            "The feature network is not trained yet.",
            where=str(node.manifest),
            todo=f"Run: snakemake --profile local {node.manifest}",
        )
    path, _ = fetch_weights(node.settings)
    return Network(path, sha256_file(path))


def _seen(
    source: ImageSource, ruler: Ruler, device: torch.device, progress: Progress
) -> tuple[dict[str, Features], str, float | None]:
    """Features of all images in every space, the sha256 of their pixels, and the CLIP score if there is one."""
    protocol, count = ruler.protocol, len(source)
    clip, captions = None, list[str]()
    if protocol.clip is not None:
        if protocol.captions is None:
            raise ConfigError("A CLIP score needs captions.", where="evaluation.protocol.captions")
        clip = open_clip_model(protocol.clip, device)
        captions = read_captions(protocol.captions, count)
    sha256, done, total = hashlib.sha256(), 0, 0.0

    def note(batch: NDArray[np.uint8]) -> None:
        nonlocal done, total
        if clip is not None:
            total += clip(batch, captions[done : done + len(batch)])
        sha256.update(batch.tobytes())
        done += len(batch)
        progress(done, count, {})

    features = features_of(source, ruler, note=note)
    return features, sha256.hexdigest(), total / count if clip else None


def _reference(ruler: Ruler, plan: Plan, given: Path | None) -> Reference:
    """What to compare with: the images or statistics that are given, or the protocol's own reference."""
    own, data = ruler.protocol.reference.images, plan.data.manifest
    if given is not None and _holds_statistics(given):
        if ruler.protocol.second is not None:
            raise ConfigError("Statistics are of one feature space.", where=str(given), todo="Set `second: null`.")
        return Reference({ruler.protocol.name: RealImages(None, Statistics.load(given))}, 0)
    if given is not None or own is not None:
        return reference_in_files(ruler, given or Path(str(own)))
    if not data.exists():
        raise MissingFileError(
            "The experiment's data, which images are compared with, are not prepared.",
            where=str(data),
            todo="Run `msd data`, or give --reference.",
        )
    return reference_of(ruler, Manifest.read(data))


def _holds_statistics(path: Path) -> bool:
    return path.suffix == ".npz" and zipfile.is_zipfile(path) and "mu.npy" in zipfile.ZipFile(path).namelist()
