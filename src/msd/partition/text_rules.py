"""Rules that say which student owns a prompt: of its embedding, or of its text.

The owner of an embedding does not depend on the batch that it comes in. A matrix product rounds differently in another
batch, so it decides only where its error bound leaves no doubt: in float32, else in float64. What is still open, which
is what lies on the border of two parts, is decided by correctly rounded sums. Nothing is fitted here.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd.errors import DataError

PRECISIONS: tuple[type[np.floating[Any]], ...] = (np.float32, np.float64)
BLOCK = 512  # embeddings at once: they stay in a core's cache


class EmbeddingRule:
    """Owners of embeddings by a few scores that are affine in them.

    Args:
        weights: (M, P) of the scores.
        bias: (M,).
        largest: absolute value of what is added to the scores or compared with them.
    """

    def __init__(self, weights: NDArray[np.float64], bias: NDArray[np.float64], largest: float) -> None:
        self.weights, self.bias = weights, bias
        self._least = 2.0**-48 * largest  # what adding and comparing in float64 can do to a margin
        self._longest = float(np.sqrt((weights**2).sum(axis=1)).max(initial=0.0))
        self._transposed = {dtype: np.ascontiguousarray(weights.T, dtype=dtype) for dtype in PRECISIONS}

    def decide(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Scores (M, B) → owners (B,), and by how much two scores must move against each other to change them (B,)."""
        raise NotImplementedError

    def __call__(self, embeddings: NDArray[Any]) -> NDArray[np.int64]:
        """Embeddings (B, P) → owners (B,).

        Raises:
            DataError: another width, or numbers that are not finite: the encoder is broken then.
        """
        width = self.weights.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != width:
            raise DataError("Embeddings do not fit the router.", why=f"shape {embeddings.shape}, expected (B, {width})")
        owners = np.empty(len(embeddings), dtype=np.int64)
        for first in range(0, len(owners), BLOCK):
            owners[first : first + BLOCK] = self._block(embeddings[first : first + BLOCK], first)
        return owners

    def _block(self, embeddings: NDArray[Any], first: int) -> NDArray[np.int64]:
        """Owners (B,) of embeddings (B, P), of which the first is number ``first``."""
        rows = np.asarray(embeddings, dtype=np.float32)
        owners = np.empty(len(rows), dtype=np.int64)
        doubtful = np.arange(len(rows))
        for dtype in PRECISIONS:
            some = rows if len(doubtful) == len(rows) else rows[doubtful]
            owners[doubtful], certain = self._by_product(some.astype(dtype, copy=False))
            if certain.all():
                return owners
            doubtful = doubtful[~certain]
        for i in doubtful:
            owners[i] = self._exactly(rows[i], first + int(i))
        return owners

    def _by_product(self, rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Owners (B,) of rows (B, P) by a matrix product in their precision, and where rounding cannot matter (B,)."""
        precision = np.finfo(rows.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is in doubt
            owners, margins = self.decide((rows @ self._transposed[rows.dtype.type]).T + self.bias[:, None])
            lengths = np.sqrt(np.einsum("bp,bp->b", rows, rows))
            # twice the bound of a dot product's error, whatever the order of its sum
            slack = (rows.shape[1] + 8) * float(precision.eps) * self._longest * lengths
            return owners, margins > slack + self._least + float(precision.tiny)

    def _exactly(self, row: NDArray[np.float32], number: int) -> int:
        """The owner of an embedding (P,) by correctly rounded sums."""
        if not np.isfinite(row).all():
            raise DataError(
                "An embedding is not finite.",
                where=f"row {number} of the batch",
                todo="Look at that prompt, and at the precision in which the text encoder runs.",
            )
        sums = [math.fsum(terms) for terms in (row.astype(np.float64) * self.weights).tolist()]
        owners, _margins = self.decide(np.array(sums)[:, None] + self.bias[:, None])
        return int(owners[0])


class Nearest(EmbeddingRule):
    """The centre k with the smallest ‖e − c_k‖² + o_k; the first of equals.

    Args:
        centres: (K, P).
        offsets: (K,) what makes the parts equally large.
    """

    def __init__(self, centres: NDArray[np.float32], offsets: NDArray[np.float64]) -> None:
        exact = centres.astype(np.float64)
        squares = np.array([math.fsum(row) for row in (exact**2).tolist()])
        # what all students have in common, ‖e‖² and the centres' mean, is left out
        bias = squares + offsets
        super().__init__(2 * (exact.mean(axis=0) - exact), bias, float(np.abs(bias).max()))

    def decide(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        owners = scores.argmin(axis=0)
        if len(scores) == 1:
            return owners, np.full(len(owners), np.inf)
        two = np.partition(scores, 1, axis=0)
        return owners, two[1] - two[0]


class Halvings(EmbeddingRule):
    """A tree of halves: above or below a threshold of the first component, then one of that half's on the second.

    Args:
        directions: (D, P), one component for each level.
        thresholds: (2^D − 1,), level by level.
    """

    def __init__(self, directions: NDArray[np.float32], thresholds: NDArray[np.float64]) -> None:
        largest = float(np.abs(thresholds).max(initial=0.0))
        super().__init__(directions.astype(np.float64), np.zeros(len(directions)), largest)
        self.thresholds = thresholds

    def decide(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        node = np.zeros(scores.shape[1], dtype=np.int64)
        margins = np.full(scores.shape[1], np.inf)
        for component in scores:
            above = component - self.thresholds[node]
            margins = np.minimum(margins, np.abs(above))
            node = 2 * node + 1 + (above > 0)
        return node - len(self.thresholds), margins


def owner_of_text(prompt: str, students: int, seed: int) -> int:
    """A student by sha256 of the prompt; spelling of spaces, case and accents in code points does not matter."""
    plain = " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFD", prompt).casefold()).split())
    hashed = hashlib.sha256(f"{seed}\n{plain}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(hashed[:8], "big") % students
