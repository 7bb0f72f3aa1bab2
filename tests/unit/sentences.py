"""Real captions and their embeddings by a real sentence encoder, computed once per machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fetched import fetched_by

from msd.store import digest, write_with

BATCH = 512


def captions(name: str, stride: int = 1) -> list[str]:
    """Every ``stride``-th caption of a file in the test data's folder of prompts."""
    path = Path(os.environ.get("MSD_TEST_DATA", "")) / "data/prompts" / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"needs MSD_TEST_DATA, a folder with data/prompts/{name}.txt")
    return path.read_text(encoding="utf-8").splitlines()[::stride]


def encoder_folder() -> Path:
    """all-MiniLM-L6-v2, from PyPI by scripts/sentence-encoder-for-tests."""
    return fetched_by("sentence-encoder-for-tests", "the sentence encoder")


def embed(sentences: Sequence[str], folder: Path) -> np.ndarray:
    """Embeddings (N, 384) float32 of length 1, kept beside the encoder under the digest of the sentences."""
    path = folder / f"embeddings-{digest(list(sentences), 16)}.npy"
    if not path.exists():
        rows = encode(sentences, folder)
        write_with(path, lambda temporary: np.save(temporary, rows))
    return np.load(path)


@torch.inference_mode()
def encode(sentences: Sequence[str], folder: Path) -> np.ndarray:
    """The masked mean of the tokens' last states, normalised, as the model's card says: (N, 384) float32."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    net = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    rows = np.empty((len(sentences), net.config.hidden_size), dtype=np.float32)
    by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # little padding
    for first in range(0, len(sentences), BATCH):
        some = by_length[first : first + BATCH]
        batch = [sentences[i] for i in some]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = tokens["attention_mask"][..., None]
        means = (net(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        rows[some] = torch.nn.functional.normalize(means).numpy()
    return rows
