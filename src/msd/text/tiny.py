"""A CLIP-shaped text encoder of any size in the layout of a diffusers folder, for miniature text-to-image models.

Its tokenizer is a real one, byte pairs learnt from captions; its weights are random, so prompts differ but no meaning
is in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from msd import store
from msd.errors import ConfigError
from msd.text.encoder_files import WEIGHTS

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
BASE = 2 * 256 + 2  # each byte, each byte at a word's end, start, end
HEAD = 32  # width of an attention head


def make_tiny_encoder(
    captions: Iterable[str],
    folder: Path,
    *,
    vocabulary: int = 1000,
    length: int = 77,
    width: int = 64,
    layers: int = 2,
    seed: int = 0,
) -> None:
    """Write ``tokenizer/`` and ``text_encoder/``, which ``open_encoder``, transformers and diffusers load.

    Args:
        captions: what the byte pairs are learnt from.
        vocabulary: tokens at most; fewer if the captions are few.
        length: tokens of a prompt, with those of start and end.
        width: of the hidden states.
        seed: of the weights.

    Raises:
        ConfigError: an impossible size.
    """
    if vocabulary < BASE or length < 2 or width < 1 or layers < 1:
        raise ConfigError(
            "Such a text encoder is too small.",
            why=f"vocabulary {vocabulary}, length {length}, width {width}, layers {layers}",
            todo=f"Give it at least {BASE} tokens, for bytes, start and end, a length of 2, a width and a layer.",
        )
    merges = _learn_merges(captions, vocabulary)
    alphabet = _alphabet()
    tokens = [*alphabet, *(byte + WORD_END for byte in alphabet), *map("".join, merges), START, END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    _write_tokenizer(folder / "tokenizer", ids, merges, length)
    _write_model(folder / "text_encoder", ids, length, width, layers, seed)


def _alphabet() -> list[str]:
    """The characters that stand for the 256 bytes, in a fixed order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _learn_merges(captions: Iterable[str], vocabulary: int) -> list[tuple[str, str]]:
    """Byte pairs by frequency in words, as CLIP's own tokenizer splits captions."""
    from tokenizers import trainers
    from transformers import CLIPTokenizer

    backend, alphabet = CLIPTokenizer().backend_tokenizer, _alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        # named beforehand, the ends of words have fixed numbers, by which the trainer orders pairs of one frequency
        special_tokens=[START, END, *(byte + WORD_END for byte in alphabet)],
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _write_tokenizer(folder: Path, ids: dict[str, int], merges: list[tuple[str, str]], length: int) -> None:
    store.write_text(folder / "vocab.json", store.canonical_json(ids))
    store.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **names}
    store.write_json(folder / "tokenizer_config.json", settings)


def _write_model(folder: Path, ids: dict[str, int], length: int, width: int, layers: int, seed: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    settings: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // math.gcd(width, HEAD),
        "max_position_embeddings": length,
        "bos_token_id": ids[START],
        "eos_token_id": ids[END],
        "pad_token_id": ids[END],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModel(CLIPTextConfig(**settings))
    # the names that released files have
    tensors = {f"text_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = model.config.to_diff_dict() | {"architectures": ["CLIPTextModel"]}
    store.write_json(folder / "config.json", config)
    store.write_with(folder / WEIGHTS, partial(save_file, tensors, metadata={"format": "pt"}))
