"""Weights files without PyTorch: where they come from, which ones a folder holds, what their headers say.

What is fetched is verified before use. Nothing here reads a tensor or a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from msd.download import cache_folder, fetch, mirrored, shown
from msd.errors import DamagedFileError, DownloadError, MissingFileError, UnsafeFileError
from msd.registry import INCEPTION, KNOWN, UrlFile
from msd.store import Manifest, read_json, verify_sha256

NETWORK_FORMAT = "msd-network-1"
CLASSIFIER_FORMAT = "msd-classifier-1"
METADATA_KEY = "msd"
BUFFERS = ("empty", "freqs")  # in the files, but no parameters: the empty prompt's states, a fixed embedding
PIPELINE = "model_index.json"  # of a diffusers pipeline
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
SUFFIXES = (".json", ".txt", ".safetensors")  # of a pipeline's files that are read; pickles stay behind
OTHER_WEIGHTS = (".fp16.", ".non_ema.")  # in names: the same weights once more
FOREIGN = ("inception", "torchscript")  # networks of features that others made


def adopt_weights(out: Path, kind: str, settings: dict[str, Any], file_format: str) -> Manifest:
    """Write the manifest ``out`` of weights that exist already: fetched, verified, of the right format.

    Raises:
        MissingFileError, DamagedFileError, DownloadError: see ``fetch_weights`` and ``read_header``.
    """
    path, origin = fetch_weights(settings)
    if settings["source"] in FOREIGN:  # not of our format; who uses it opens it
        results = {"origin": origin}
        return Manifest.write(out, kind=kind, settings=settings, results=results, files={"weights": path})
    return record_weights(out, kind, settings, path, origin, file_format)


def record_weights(
    out: Path, kind: str, settings: dict[str, Any], path: Path, origin: dict[str, Any], file_format: str
) -> Manifest:
    """Write the manifest ``out`` of the weights file ``path``.

    Raises:
        MissingFileError, DamagedFileError: see ``read_header``.
    """
    return Manifest.write(
        out,
        kind=kind,
        settings=settings,
        results={"origin": origin, "parameters": read_header(path, file_format).parameters},
        files={"weights": path},
    )


@dataclass(frozen=True)
class Header:
    """What a weights file of ours says of itself.

    Attributes:
        description: of the network.
        parameters: how many; what the network holds beside them does not count.
        sha256: of the tensors, as they were written.
    """

    description: dict[str, Any]
    parameters: int
    sha256: str


def read_header(path: Path, file_format: str) -> Header:
    """The header of a safetensors file of a known format. Reads no tensor.

    Raises:
        MissingFileError: no such file.
        DamagedFileError: truncated, no safetensors file, or of another format.
    """
    if not path.is_file():
        raise MissingFileError("A weights file does not exist.", where=str(path))
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = json.loads((f.metadata() or {}).get(METADATA_KEY, "{}"))
            names = [name for name in f.keys() if name.split(".")[-1] not in BUFFERS]  # noqa: SIM118 (not a dict)
            parameters = sum(math.prod(f.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError, ValueError) as e:
        raise DamagedFileError("A weights file cannot be read.", where=str(path), why=str(e)) from None
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != file_format:
        raise DamagedFileError(
            "A weights file has another format.", where=str(path), why=f"format is {found!r}, expected {file_format!r}"
        )
    try:
        return Header(metadata["description"], parameters, metadata["sha256"])
    except KeyError as e:
        raise DamagedFileError("A weights file does not describe itself.", where=str(path), why=f"no {e}") from None


def weights_files(folder: Path, name: str) -> tuple[Path, ...]:
    """The safetensors files of a model's folder, diffusers' or transformers': one, or the shards that an index names.

    Args:
        name: of the file, where there is one.

    Raises:
        MissingFileError: there are none, or a shard is missing.
        UnsafeFileError: there are pickles only.
        DamagedFileError: the index names no file.
    """
    whole, index = folder / name, folder / f"{name}.index.json"
    if whole.is_file():
        return (whole,)
    if index.is_file():
        return _shards(index)
    if any(folder.glob("*pytorch_model*.bin*")):
        raise UnsafeFileError(
            "The weights of a model are a pickle; it was not read.",
            where=str(folder),
            todo=f"Take the release with {name}.",
        )
    raise MissingFileError("A model has no weights.", where=str(whole))


def _shards(index: Path) -> tuple[Path, ...]:
    value = read_json(index)
    names = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(names, dict) or not names:
        raise DamagedFileError("An index of weights names no file.", where=str(index))
    shards = tuple(index.parent / Path(name).name for name in sorted(set(names.values())))
    if missing := [str(path) for path in shards if not path.is_file()]:
        raise MissingFileError("A part of a model's weights is missing.", where=missing[0])
    return shards


def fetch_weights(settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The local path of weights, verified, and what is known of their origin (empty if nothing is).

    Args:
        settings: a ``config`` source with ``source`` one of file, url, hf, known, inception, torchscript.

    Returns:
        A file; the folder of the files for a known teacher that has several, and for a pipeline on the hub.

    Raises:
        MissingFileError: the file does not exist.
        DamagedFileError: its sha256 is not the expected one.
        DownloadError: it could not be fetched.
    """
    source = settings["source"]
    if source == "inception" and settings["path"] is None:
        return fetch(INCEPTION.url, INCEPTION.sha256), {"url": INCEPTION.url}
    if source in ("file", *FOREIGN):
        return _file(settings)
    if source == "known":
        return _known(settings["name"])
    if source == "url":
        return fetch(settings["url"], settings["sha256"]), {}
    if settings.get("filename") is None:
        return _pipeline(settings["repo"], settings["revision"]), {}
    return _hub(settings["repo"], settings["revision"], settings["filename"], settings["sha256"]), {}


def _file(settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A file of the user's; a record of its training may lie beside it, with the ending .json."""
    path = Path(settings["path"])
    if not path.is_file():
        raise MissingFileError(
            "A weights file that the configuration names does not exist.",
            where=str(path),
            todo="Correct `path`, or set `source: train` to make it.",
        )
    origin = _record_of(path)
    expected = settings["sha256"] or (origin["weights"].get("sha256") if origin else None)
    if expected is not None:
        verify_sha256(path, expected, todo="Restore the file (git checkout, or copy it again) or mend the sha256.")
    return path, origin


def _record_of(path: Path) -> dict[str, Any]:
    """The record beside a file; empty if there is none, or if it is that of another file of the same stem."""
    beside = path.with_suffix(".json")
    record = read_json(beside) if beside.is_file() else {}
    weights = record.get("weights") if isinstance(record, dict) else None
    return record if isinstance(weights, dict) and weights.get("path") == path.name else {}


def _known(name: str) -> tuple[Path, dict[str, Any]]:
    teacher = KNOWN[name]
    place = teacher.place
    origin = {"name": name, "url": place.url, "licence": teacher.licence}
    if isinstance(place, UrlFile):
        return fetch(place.url, place.sha256), origin
    paths = {file: _hub(place.repo, place.revision, file, sha256) for file, sha256 in place.files.items()}
    file, path = next(iter(paths.items()))
    return path.parents[file.count("/")], origin


def _pipeline(repo: str, revision: str) -> Path:
    """The folder of a diffusers pipeline of one commit on the hub, which vouches for the files.

    The mirror's ``<repo>/`` comes first; for that, whoever filled it vouches.
    """
    if (index := mirrored(f"{repo}/{PIPELINE}")) is not None:
        return index.parent
    from huggingface_hub import snapshot_download

    with _told_of_hub(f"{repo}@{revision}"):
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache_folder() / "hub",
                allow_patterns=[PIPELINE, *(f"{part}/*{suffix}" for part in PARTS for suffix in SUFFIXES)],
                ignore_patterns=[f"*{part}*" for part in OTHER_WEIGHTS],
            )
        )


def _hub(repo: str, revision: str, filename: str, sha256: str | None) -> Path:
    """A file of one commit of a repository on the hub; the mirror's ``<repo>/<filename>`` comes first."""
    from huggingface_hub import hf_hub_download

    path = mirrored(f"{repo}/{filename}")
    with _told_of_hub(f"{repo}@{revision}/{filename}"):
        path = path or Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache_folder() / "hub"))
    if sha256 is not None:
        verify_sha256(path, sha256, todo="Mend the sha256, or delete the file and what it links to.")
    return path


@contextmanager
def _told_of_hub(where: str) -> Iterator[None]:
    """Whatever goes wrong as one error: those of the hub's transport come through, and their classes change."""
    try:
        yield
    except Exception as e:
        raise DownloadError(
            "A download from the hub failed.",
            where=where,
            why=shown(str(e).split("\n")[0]),
            todo="Check the names and the network; run the same command again to go on.",
        ) from None
