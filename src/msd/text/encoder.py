"""Text encoders: prompts to hidden states of one length and a pooled vector. Two kinds, told apart by ``model_type``.

A *CLIP text model* in a diffusers folder (``tokenizer/``, ``text_encoder/``) gives what Stable Diffusion conditions on:
the last hidden states, padded to the model's own length, without a mask. A *BERT sentence encoder* such as
all-MiniLM-L6-v2 gives the states of the prompt's tokens, zeros after them, and their normalised mean. Nothing is
downloaded, no pickle is read, and a prompt that does not fit is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from msd.errors import ConfigError
from msd.text.encoder_files import CLIP, digest_of, load, parts_of

BERT_LENGTH = 77  # tokens at most; that of CLIP, so that both make archives of one form
Pooling: TypeAlias = Literal["prompt", "end", "all"]


@dataclass(frozen=True)
class Encoded:
    """What an encoder says of B prompts, on its device.

    Attributes:
        hidden: (B, L, D) float32.
        pooled: (B, D) float32.
        truncated: (B,) bool: the prompt has more than L tokens, and the rest was left out.
    """

    hidden: Tensor
    pooled: Tensor
    truncated: Tensor


class TextEncoder:
    """A tokenizer and a model, frozen.

    Attributes:
        kind: ``clip_text_model`` or ``bert``.
        length: L, tokens with those of start and end.
        width: D.
        pooling: what the pooled vector is the mean of, see ``open_encoder``.
        sha256: digest of its files.
        device: where it computes.
    """

    def __init__(
        self, tokenizer: Any, model: Any, *, kind: str, pooling: Pooling, sha256: str, device: torch.device
    ) -> None:
        self._tokenizer, self._model = tokenizer, model.to(device).eval().requires_grad_(False)
        self.kind, self.pooling, self.sha256, self.device = kind, pooling, sha256, device
        positions = int(model.config.max_position_embeddings)
        self.length = positions if kind == CLIP else min(BERT_LENGTH, positions, tokenizer.model_max_length)
        self.width = int(model.config.hidden_size)
        first = tokenizer("")["input_ids"]
        self._end, self._pad = first[-1], tokenizer.pad_token_id

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Encoded:
        """Hidden states, pooled vectors and what was truncated, of B > 0 prompts."""
        tokens, mask, truncated = self._tokens(prompts)
        if self.kind == CLIP:
            hidden = self._model(input_ids=tokens).last_hidden_state
            pooled = _mean(hidden, self._counted(mask))
        else:
            hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]
            pooled = normalize(_mean(hidden, mask), dim=1)
        return Encoded(hidden, pooled, truncated)

    def _tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, L) int64, which of them are the prompt's (B, L) int64, what was truncated (B,) bool.

        A prompt that is too long keeps its first tokens and the one of the end, as the tokenizer's own truncation does.
        """
        ids = self._tokenizer(prompts, padding=False, truncation=False, verbose=False)["input_ids"]
        tokens = torch.full((len(prompts), self.length), self._pad)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(ids):
            kept = row if len(row) <= self.length else [*row[: self.length - 1], self._end]
            tokens[i, : len(kept)] = torch.tensor(kept)
            mask[i, : len(kept)] = 1
        truncated = torch.tensor([len(row) > self.length for row in ids], dtype=torch.bool)
        return tokens.to(self.device), mask.to(self.device), truncated.to(self.device)

    def _counted(self, mask: Tensor) -> Tensor:
        """Which of the tokens (B, L) the pooled vector is the mean of."""
        if self.pooling == "all":
            return torch.ones_like(mask)
        end = mask.sum(dim=1, keepdim=True) - 1
        position = torch.arange(self.length, device=mask.device)
        return (position == end).long() if self.pooling == "end" else ((position > 0) & (position <= end)).long()


def open_encoder(folder: Path, device: torch.device | str, pooling: Pooling = "prompt") -> TextEncoder:
    """The text encoder in a folder.

    Args:
        folder: of a diffusers pipeline, or of a BERT model with its tokenizer.
        pooling: of a CLIP text model. ``prompt``: the mean over the prompt's tokens, that of the end included; the
            state of the start token is the same for every prompt and is left out, as is the padding. ``end``: the state
            of the end token. ``all``: the mean over all L states.

    Raises:
        MissingFileError: the folder lacks a file.
        ConfigError: it holds another kind of model, or the kind has no such pooling.
        UnsafeFileError: the weights are a pickle.
        DamagedFileError: a file cannot be read, or the weights are not those of the model.
    """
    parts = parts_of(Path(folder))
    if pooling not in get_args(Pooling) or (parts.kind != CLIP and pooling != "prompt"):
        raise ConfigError(f"There is no pooling {pooling!r} of this encoder.", where=str(folder), why=parts.kind)
    tokenizer, model = load(parts)
    return TextEncoder(
        tokenizer, model, kind=parts.kind, pooling=pooling, sha256=digest_of(parts), device=torch.device(device)
    )


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states (B, L, D) that a mask (B, L) names: (B, D)."""
    return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
