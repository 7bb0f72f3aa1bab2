"""Where network files come from: a path, a URL or the hub. Always verified by sha256 before use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from msd.errors import DownloadError, MissingFileError
from msd.store import read_json, sha256_file, verify_sha256


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
