"""A teacher that exists already: fetched, verified, and where it is EDM's pickle, kept as a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msd.config import Experiment, KnownSource, Network, StudentVariant
from msd.errors import ConfigError, DamagedFileError
from msd.partition.conditions import check_split
from msd.plan import Node
from msd.registry import KNOWN
from msd.store import Manifest
from msd.weights import NETWORK_FORMAT, fetch_weights, read_header, record_weights

NOT_SHAPE = {"dropout", "label_dropout"}  # of training, no part of what the weights are


def adopt_teacher(node: Node, experiment: Experiment) -> Manifest:
    """Write the manifest of a teacher with a source other than ``train``; a converted pickle goes beside it.

    PyTorch is imported for a pickle and for a diffusers folder only.

    Raises:
        ConfigError: the teacher is unconditional and a variant has several students.
        MissingFileError, DamagedFileError, DownloadError: it cannot be had (``weights.fetch_weights``) or read.
        UnsafeFileError: a pickle that holds more than a network; nothing of it was run.
    """
    path, origin = _fetch(node)
    if path.suffix == ".pkl":
        from msd.networks.convert import convert

        pickled, path = path, node.manifest.parent / "weights.safetensors"
        origin = {**origin, "converted_from": convert(pickled, path)["converted_from"]}
    description = read_header(path, NETWORK_FORMAT).description
    if "num_conditions" not in description:
        raise DamagedFileError("A weights file describes no network.", where=str(path))
    if isinstance(experiment.teacher, KnownSource):
        _check(experiment.teacher, description, path)
    of_text = description.get("network", {}).get("architecture") == "unet2d"
    if of_text != (experiment.text is not None):
        raise ConfigError(
            f"The teacher is conditioned on {'text' if of_text else 'classes'}, the experiment is not.",
            where=str(path),
            todo="Give the section `text` to an experiment of text to image, and to no other.",
        )
    students = [v.students for v in experiment.variants.values() if isinstance(v, StudentVariant)]
    if experiment.text is None:
        check_split(description["num_conditions"], max(students, default=1), str(path))
    return record_weights(node.manifest, node.kind, node.settings, path, origin, NETWORK_FORMAT)


def _fetch(node: Node) -> tuple[Path, dict[str, Any]]:
    """The file, and its origin; of a text-conditional teacher a file of ours, written beside the manifest."""
    settings, out = node.settings, node.manifest.parent / "weights.safetensors"
    known_of_text = settings["source"] == "known" and KNOWN[settings["name"]].classes is None
    if known_of_text or (settings["source"] == "hf" and settings["filename"] is None):
        folder, origin = fetch_weights(settings)
        from msd.networks.diffusers_files import adopt_pipeline

        return out, origin | adopt_pipeline(folder, out)
    if settings["source"] != "diffusers":
        return fetch_weights(settings)
    from msd.networks.diffusers_files import adopt_pipeline, adopt_single_file

    path = Path(settings["path"])
    if path.is_dir():
        return out, adopt_pipeline(path, out)
    if settings["components"] is None:
        raise ConfigError(
            "A single file holds no text encoder that is read.",
            where="teacher.components",
            todo="Name a diffusers folder with text_encoder/ and tokenizer/.",
        )
    return out, adopt_single_file(path, Path(settings["components"]), out)


def _check(teacher: KnownSource, description: dict[str, Any], path: Path) -> None:
    """What the registry and the configuration promise is what the file says."""
    name = teacher.name
    promised = (KNOWN[name].resolution, KNOWN[name].classes)
    found = (description["image_shape"][-1], description["num_conditions"])
    if KNOWN[name].classes is not None and found != promised:
        raise DamagedFileError(
            f"The file of the teacher {name!r} holds another network.",
            where=str(path),
            why=f"images of {found[0]} pixels, {found[1]} classes; expected {promised[0]} and {promised[1]}",
            todo="Remove it from the download folder (MSD_CACHE) and run the same command again.",
        )
    if teacher.network is None:
        return
    given, held = teacher.network, Network.model_validate(description["network"])
    if given.model_dump(exclude=NOT_SHAPE) != held.model_dump(exclude=NOT_SHAPE):
        raise ConfigError(
            f"The teacher {name!r} is another network than the configuration says.",
            where="teacher.network",
            why=f"the file holds {held.model_dump(exclude_defaults=True)}",
            todo="Leave teacher.network out, or give what the file holds.",
        )
