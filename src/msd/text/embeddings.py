"""Hidden states and pooled vectors of all prompts, computed once: a folder of safetensors shards and a manifest.

``embed_prompts`` makes it, a shard at a time, so that a job that dies loses one shard's work at most. ``Embeddings``
maps the shards into memory, so training batches take rows of an archive of any size at random. Holds no lease and heeds
no signal itself: whoever calls hands in what does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msd import store
from msd.errors import DamagedFileError, DataError
from msd.shards import Progress, Shards
from msd.text.archive import PromptArchive, texts
from msd.text.encoder import TextEncoder

MANIFEST = "manifest.json"
KIND = "embeddings"
SHARD = 1024  # prompts; 121 MB of Stable Diffusion v1.5's states
BATCH = 64
NAME, SUFFIX = "embeddings", ".safetensors"
EMPTY = "empty"  # the name of the empty prompt's file begins with it


def embed_prompts(
    prompts: PromptArchive,
    encoder: TextEncoder,
    out: Path,
    *,
    shard_size: int = SHARD,
    dtype: torch.dtype = torch.float16,
    batch: int = BATCH,
    inputs: dict[str, Path] | None = None,
    guard: Callable[[], None] = lambda: None,
    stop: Callable[[], str | None] = lambda: None,
    progress: Progress = lambda *_: None,
) -> store.Manifest:
    """Encode what is missing, then write the manifest. Every shard is a function of the number of its first prompt.

    Args:
        out: a folder; the shards of the same prompts and encoder that are whole are kept.
        dtype: of the hidden states on disk.
        batch: prompts that are encoded at once.
        inputs: manifests that they were made from; None: that of the prompts.
        guard: called before a shard is put in place; it raises if this process may no longer write.
        stop: why to stop, or None; asked after each shard.
        progress: told of prompts done, all prompts, and nothing.

    Raises:
        InterruptedRun: there was a reason to stop; the shards that are whole are kept.
        DataError: states are not finite in ``dtype``.
    """
    out, count = Path(out), len(prompts)
    settings = {
        "prompts": prompts.sha256,
        "encoder": encoder.sha256,
        "pooling": encoder.pooling,
        "shard_size": shard_size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    identity = store.digest(settings)

    def write(path: Path, lines: list[str]) -> dict[str, int]:
        shard = _encoded(lines, encoder, dtype, batch, str(path))
        store.write_with(path, partial(save_file, shard), guard)
        return {"truncated": int(shard["truncated"].sum())}

    def write_some(path: Path, first: int, number: int) -> dict[str, int]:
        return write(path, texts(prompts[first : first + number]))

    shards = Shards(out, NAME, SUFFIX, count=count, size=shard_size, identity=identity)
    shards.fill(write_some, what="prompts are encoded", guard=guard, stop=stop, progress=progress)
    empty = Shards(out, EMPTY, SUFFIX, count=1, size=1, identity=identity)
    empty.fill(lambda path, *_: write(path, [""]), what="prompts are encoded", guard=guard)
    return store.Manifest.write(
        out / MANIFEST,
        kind=KIND,
        settings=settings,
        inputs=inputs or {"prompts": prompts.manifest.path},
        files={**shards.files, **empty.files},
        results={
            "prompts": count,
            "length": encoder.length,
            "width": encoder.width,
            "truncated": shards.total("truncated"),
            "encoder": {"kind": encoder.kind, "sha256": encoder.sha256},
        },
        identity=identity,
    )


def _encoded(lines: list[str], encoder: TextEncoder, dtype: torch.dtype, batch: int, where: str) -> dict[str, Tensor]:
    """The tensors of a shard of n prompts: hidden (n, L, D), pooled (n, D) float32, truncated (n,) bool."""
    shard = {
        "hidden": torch.empty(len(lines), encoder.length, encoder.width, dtype=dtype),
        "pooled": torch.empty(len(lines), encoder.width),
        "truncated": torch.empty(len(lines), dtype=torch.bool),
    }
    for first in range(0, len(lines), batch):
        encoded = encoder.encode(lines[first : first + batch])
        for name, tensor in shard.items():
            tensor[first : first + batch] = getattr(encoded, name)
    if not (shard["hidden"].isfinite().all() and shard["pooled"].isfinite().all()):
        raise DataError(
            "Hidden states are not finite.",
            where=where,
            why=f"as {dtype}",
            todo="Take float32, or look at the encoder's weights.",
        )
    return shard


def open_embeddings(manifest: store.Manifest, verify: bool = True) -> Embeddings:
    """The archive of a manifest, mapped into memory.

    Args:
        verify: check every shard against its sha256, which reads all of them once.

    Raises:
        MissingFileError, DamagedFileError: a shard is missing or damaged, or the manifest is that of something else.
    """
    if manifest.body["kind"] != KIND:
        raise DamagedFileError("A manifest is not that of embeddings.", where=str(manifest.path))
    return Embeddings(manifest, verify)


class Embeddings:
    """Hidden states and pooled vectors of N prompts on disk. What is not asked for is not read.

    Attributes:
        manifest: of the archive.
        shape: (L, D) of a prompt's hidden states.
        empty: (L, D) float32, the empty prompt's hidden states.
    """

    def __init__(self, manifest: store.Manifest, verify: bool) -> None:
        self.manifest, results = manifest, manifest.results
        self.shape: tuple[int, int] = (results["length"], results["width"])
        self._length, self._shard_size = int(results["prompts"]), int(manifest.settings["shard_size"])
        names = [name for name in manifest.body["files"] if name.startswith(NAME)]
        self._shards = [_mapped(manifest.file(name, verify)) for name in names]
        (empty,) = (name for name in manifest.body["files"] if name.startswith(EMPTY))
        self.empty = _mapped(manifest.file(empty, verify))["hidden"][0].float()

    def __len__(self) -> int:
        return self._length

    def hidden(self, indices: Tensor) -> Tensor:
        """Hidden states (B, L, D) float32 of the prompts at ``indices`` (B,) int64."""
        return self._rows("hidden", indices, self.shape)

    def pooled(self, indices: Tensor | None = None) -> Tensor:
        """Pooled vectors (B, D) float32 of the prompts at ``indices`` (B,) int64; None: of all, (N, D)."""
        if indices is None:
            return torch.cat([shard["pooled"] for shard in self._shards])
        return self._rows("pooled", indices, self.shape[1:])

    def truncated(self) -> Tensor:
        """Which prompts were too long, (N,) bool."""
        return torch.cat([shard["truncated"] for shard in self._shards])

    def _rows(self, name: str, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self._length:
            raise IndexError(f"prompts are 0 to {self._length - 1}")
        rows = torch.empty(len(indices), *shape)
        for row, i in enumerate(indices.tolist()):
            rows[row] = self._shards[i // self._shard_size][name][i % self._shard_size]
        return rows


def _mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard. safetensors maps the file; its pages are read when they are used, and no file stays open.

    Raises:
        DamagedFileError: this is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in ("hidden", "pooled", "truncated")}
    except (SafetensorError, OSError) as e:
        raise DamagedFileError("A shard of embeddings cannot be read.", where=str(path), why=str(e)) from None
