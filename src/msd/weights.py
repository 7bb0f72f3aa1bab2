"""Weights files without PyTorch: where they come from and what their headers say. Verified by sha256 before use."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from msd.errors import DamagedFileError, DownloadError, MissingFileError
from msd.store import Manifest, read_json, sha256_file, verify_sha256

NETWORK_FORMAT = "msd-network-1"
CLASSIFIER_FORMAT = "msd-classifier-1"
METADATA_KEY = "msd"


def adopt_weights(out: Path, kind: str, settings: dict[str, Any], file_format: str) -> Manifest:
    """Write the manifest ``out`` of weights that exist already: fetched, verified, of the right format.

    Raises:
        MissingFileError, DamagedFileError, DownloadError: see ``fetch_weights`` and ``read_header``.
    """
    path, origin = fetch_weights(settings)
    _, parameters = read_header(path, file_format)
    return Manifest.write(
        out,
        kind=kind,
        settings=settings,
        files={"weights": path},
        results={"origin": origin, "parameters": parameters},
    )


def read_header(path: Path, file_format: str) -> tuple[dict[str, Any], int]:
    """Description of a safetensors file of a known format, and how many numbers it holds. Reads no tensor.

    Raises:
        MissingFileError: no such file.
        DamagedFileError: truncated, no safetensors file, or of another format.
    """
    if not path.is_file():
        raise MissingFileError("A weights file does not exist.", where=str(path))
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = json.loads((f.metadata() or {}).get(METADATA_KEY, "{}"))
            numbers = sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as e:
        raise DamagedFileError("A weights file cannot be read.", where=str(path), why=str(e)) from None
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != file_format:
        raise DamagedFileError(
            "A weights file has another format.", where=str(path), why=f"format is {found!r}, expected {file_format!r}"
        )
    return metadata.get("description", {}), numbers


def fetch_weights(settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The local path of a weights file, verified, and the manifest of how it was trained (empty if it has none).

    Args:
        settings: a ``config`` source with ``source`` one of file, url, hf.

    Raises:
        MissingFileError: the file does not exist.
        DamagedFileError: its sha256 is not the expected one.
        DownloadError: it could not be fetched.
    """
    path = {"file": _file, "url": _url, "hf": _hub}[settings["source"]](settings)
    origin_path = path.with_suffix(".json")
    origin = read_json(origin_path) if origin_path.is_file() else {}
    expected = settings["sha256"] or origin.get("weights", {}).get("sha256") or sha256_file(path)
    verify_sha256(path, expected, todo="Restore the file (git checkout, or download it again) or mend the sha256.")
    return path, origin


def cache_folder() -> Path:
    """Where downloads are kept: ``$MSD_CACHE``, or ``msd`` under the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MSD_CACHE") or Path(base) / "msd")


def _file(settings: dict[str, Any]) -> Path:
    path = Path(settings["path"])
    if not path.is_file():
        raise MissingFileError(
            "A weights file that the configuration names does not exist.",
            where=str(path),
            todo="Correct `path`, or set `source: train` to make it.",
        )
    return path


def _url(settings: dict[str, Any]) -> Path:
    import pooch

    try:
        return Path(
            pooch.retrieve(settings["url"], known_hash=settings["sha256"], path=cache_folder(), progressbar=False)
        )
    except (OSError, ValueError) as e:
        raise DownloadError(
            "A download failed.", where=settings["url"], why=str(e), todo="Check the URL, the digest and the network."
        ) from None


def _hub(settings: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                settings["repo"], settings["filename"], revision=settings["revision"], cache_dir=cache_folder() / "hub"
            )
        )
    except (OSError, ValueError) as e:
        raise DownloadError(
            "A download from the hub failed.",
            where=f"{settings['repo']}@{settings['revision']}/{settings['filename']}",
            why=str(e),
            todo="Check the names and the network.",
        ) from None
