"""The same prompts in every format that ``msd.text`` reads, written as those who defined the formats do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
from pyarrow import parquet

Prompts = Sequence[str]


def write_txt(path: Path, prompts: Prompts) -> Path:
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path


def write_jsonl(path: Path, prompts: Prompts) -> Path:
    return write_txt(path, [json.dumps({"image": f"{i}.jpg", "caption": p}) for i, p in enumerate(prompts)])


def write_parquet(path: Path, prompts: Prompts) -> Path:
    parquet.write_table(pa.table({"url": ["x"] * len(prompts), "text": list(prompts)}), path, row_group_size=2)
    return path


def write_coco(path: Path, prompts: Prompts) -> Path:
    annotations = [{"image_id": 9 * i, "id": 1000 - i, "caption": p} for i, p in enumerate(prompts)]
    path.write_text(json.dumps({"info": {}, "images": [], "licenses": [], "annotations": annotations}))
    return path


def write_pickle(path: Path, prompts: Prompts, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path.write_bytes(pickle.dumps(list(prompts), protocol))
    return path


def write_latents(path: Path, prompts: Prompts, latents: np.ndarray | None = None) -> Path:
    """A latent LMDB folder of DMD2; latents (N, c, h, w) float16, None: zeros."""
    latents = np.zeros((len(prompts), 4, 64, 64), np.float16) if latents is None else latents
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for i, (prompt, latent) in enumerate(zip(prompts, latents, strict=True)):
            transaction.put(f"prompts_{i}_data".encode(), prompt.encode())
            transaction.put(f"latents_{i}_data".encode(), latent.tobytes())
        transaction.put(b"prompts_shape", str(len(prompts)).encode())
        transaction.put(b"latents_shape", " ".join(map(str, latents.shape)).encode())
    return path


FORMATS: dict[str, tuple[str, Callable[[Path, Prompts], Path]]] = {
    "txt": ("prompts.txt", write_txt),
    "jsonl": ("prompts.jsonl", write_jsonl),
    "parquet": ("prompts.parquet", write_parquet),
    "coco": ("captions_val2014.json", write_coco),
    "pickle": ("prompts.pkl", write_pickle),
    "lmdb": ("latents_lmdb", write_latents),
}
