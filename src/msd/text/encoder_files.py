"""The folder of a text encoder: what is in it, its digest, how it is loaded and copied. Knows nothing of prompts.

transformers fills weights that a file lacks with random numbers, and gives a tokenizer without files an empty
vocabulary; both are errors here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msd import store
from msd.errors import ConfigError, DamagedFileError, MissingFileError
from msd.weights import weights_files

CLIP, BERT = "clip_text_model", "bert"
WEIGHTS = "model.safetensors"
VOCABULARIES = {CLIP: ("vocab.json", "merges.txt"), BERT: ("vocab.txt",)}
TOKENIZER = "tokenizer.json"  # holds the vocabulary too
TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_SETTINGS, "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Parts:
    """Where an encoder's files are.

    Attributes:
        folder: all of them are in it.
        kind: ``CLIP`` or ``BERT``.
        model: the folder of configuration and weights.
        tokenizer: the folder of the tokenizer's files.
        weights: the safetensors files.
    """

    folder: Path
    kind: str
    model: Path
    tokenizer: Path
    weights: tuple[Path, ...]


def parts_of(folder: Path) -> Parts:
    """What a folder holds.

    Raises:
        MissingFileError, DamagedFileError: a file is missing or cannot be read.
        ConfigError: another kind of model.
        UnsafeFileError: the weights are a pickle.
    """
    model = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    config = store.read_json(model / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in VOCABULARIES:
        raise ConfigError(
            "This is not a text encoder of a known kind.",
            where=str(model / "config.json"),
            why=f"model_type is {kind!r}; known: {CLIP} (Stable Diffusion 1 and 2), {BERT} (all-MiniLM-L6-v2)",
        )
    names = VOCABULARIES[kind]
    if not (tokenizer / TOKENIZER).exists() and (missing := [n for n in names if not (tokenizer / n).exists()]):
        raise MissingFileError("A tokenizer has no vocabulary.", where=str(tokenizer / missing[0]))
    return Parts(folder, kind, model, tokenizer, weights_files(model, WEIGHTS))


def digest_of(parts: Parts) -> str:
    """sha256 over the names and bytes of all files that decide what the encoder says."""
    texts = [p for folder in {parts.model, parts.tokenizer} for p in folder.iterdir() if p.suffix in (".json", ".txt")]
    return store.digest({str(p.relative_to(parts.folder)): store.sha256_file(p) for p in {*texts, *parts.weights}})


def copy_encoder(source: Path, folder: Path, length: int | None = None) -> None:
    """Copy what an encoder needs to ``text_encoder/`` and ``tokenizer/`` in a folder.

    Args:
        length: tokens of a prompt, which the copy's tokenizer keeps as its ``model_max_length``; None: as it was.

    Raises:
        MissingFileError, DamagedFileError, UnsafeFileError: see ``parts_of``.
        ConfigError: another kind of model, or the length of a CLIP text model, which its positions decide.
    """
    parts = parts_of(source)
    if length is not None and parts.kind == CLIP:
        raise ConfigError(
            "The length of a CLIP text model cannot be chosen.", where=str(source), todo="Give no length."
        )
    for path in (parts.model / "config.json", *parts.model.glob("*.index.json"), *parts.weights):
        _copy(path, folder / "text_encoder")
    for name in (*TOKENIZER_FILES, *VOCABULARIES[parts.kind]):
        _copy(parts.tokenizer / name, folder / "tokenizer")
    if length is not None:
        path = folder / "tokenizer" / TOKENIZER_SETTINGS
        settings = store.read_json(path) if path.exists() else {}
        store.write_json(path, settings | {"model_max_length": length})


def _copy(path: Path, folder: Path) -> None:
    if path.exists():
        store.write_with(folder / path.name, lambda aside: shutil.copyfile(path, aside))


def load(parts: Parts) -> tuple[Any, Any]:
    """Tokenizer and model, float32, on the CPU.

    Raises:
        DamagedFileError: a file cannot be read, weights are missing, or the tokenizer has more tokens than the model.
    """
    import transformers  # seconds

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        CLIP: (transformers.CLIPTokenizer, transformers.CLIPTextModel, {}),
        BERT: (transformers.BertTokenizer, transformers.BertModel, {"add_pooling_layer": False}),
    }
    tokenizer_class, model_class, options = kinds[parts.kind]
    try:
        with _quiet():
            tokenizer = tokenizer_class.from_pretrained(parts.tokenizer, local_files_only=True)
            model, report = model_class.from_pretrained(
                parts.model,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except Exception as e:  # of transformers, safetensors and tokenizers, which have no common one
        raise _damaged(parts, str(e)[:300]) from None
    if report["missing_keys"]:
        raise _damaged(parts, f"the weights lack {sorted(report['missing_keys'])[0]} and perhaps more")
    if len(tokenizer) > model.config.vocab_size:
        raise _damaged(parts, f"the tokenizer has {len(tokenizer):,} tokens, the model {model.config.vocab_size:,}")
    return tokenizer, model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and tables; what matters of them is an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _damaged(parts: Parts, why: str) -> DamagedFileError:
    return DamagedFileError(
        "A text encoder cannot be loaded.", where=str(parts.model), why=why, todo="Fetch its folder again."
    )
