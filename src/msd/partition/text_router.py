"""The router of prompts: which student owns a prompt, kept in a folder of two files. ``text_fit`` makes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load, save

from msd.config import TEXT_PARTITION, Hashed, Quadrants, TextKMeans, TextPartitionSpec
from msd.errors import DamagedFileError, DataError, PartitionError
from msd.partition.text_rules import EmbeddingRule, Halvings, Nearest, owner_of_text
from msd.store import atomic_write, digest, read_json, sha256_file, verify_sha256, write_json

FORMAT, SCHEMA = "msd-text-router", 1
FIT_AGAIN = "Fit the router again, or take an intact copy of both files."
Tensors = dict[str, NDArray[Any]]


class TextRouter:
    """Routes prompts to the students that own them.

    Every prompt has exactly one owner, the same alone or in any batch; equals are decided for the lower student. An
    embedding that is not finite is an error, never a guess.

    Args:
        spec: what kind it is.
        students: K.
        tensors: kmeans: ``centres`` (K, P) float32 and ``offsets`` (K,) float64; quadrants: ``directions`` (D, P)
            float32 and ``thresholds`` (K − 1,) float64 with K = 2^D; hash: none.
        width: P; None where embeddings are not looked at.
        balance: sizes of the parts of what it was fitted on; None: not known.

    Raises:
        PartitionError: the tensors are not those of such a router.
    """

    def __init__(
        self,
        spec: TextPartitionSpec,
        students: int,
        tensors: Tensors,
        width: int | None,
        balance: dict[str, Any] | None = None,
    ) -> None:
        self.spec, self.students, self.tensors = spec, students, tensors
        self.width, self.balance = width, balance
        _check(spec, students, tensors, width)
        self._rule: EmbeddingRule | None = None
        if isinstance(spec, TextKMeans):
            self._rule = Nearest(tensors["centres"], tensors["offsets"])
        elif isinstance(spec, Quadrants):
            self._rule = Halvings(tensors["directions"], tensors["thresholds"])

    def __call__(self, embeddings: NDArray[Any] | None, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Pooled embeddings (B, P), which kind hash does without, and their prompts (B) → students (B,).

        Raises:
            DataError: embeddings of another width or number, or not finite.
        """
        if isinstance(self.spec, Hashed):
            owners = (owner_of_text(prompt, self.students, self.spec.seed) for prompt in prompts)
            return np.fromiter(owners, dtype=np.int64, count=len(prompts))
        if embeddings is None or len(embeddings) != len(prompts):
            found = "none" if embeddings is None else str(len(embeddings))
            raise DataError(
                f"A router of kind {self.spec.kind} needs one embedding for each prompt.",
                why=f"{len(prompts)} prompts, embeddings: {found}",
            )
        return self.by_embedding(embeddings)

    def by_embedding(self, embeddings: NDArray[Any]) -> NDArray[np.int64]:
        """Embeddings (B, P) → students (B,), for the kinds that look at them."""
        assert self._rule is not None
        return self._rule(embeddings)

    def save(self, folder: Path) -> None:
        """Write ``router.safetensors``, then ``router.json``, which names it by sha256 and its own content too."""
        path = folder / "router.safetensors"
        with atomic_write(path, "wb") as f:
            f.write(save({name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()}))
        body = {
            "format": FORMAT,
            "schema": SCHEMA,
            "kind": self.spec.kind,
            "students": self.students,
            "settings": self.spec.model_dump(exclude={"kind"}),
            "width": self.width,
            "tensors_sha256": sha256_file(path),
            "balance": self.balance,
        }
        write_json(folder / "router.json", {**body, "sha256": digest(body)})

    @classmethod
    def load(cls, folder: Path) -> TextRouter:
        """Read what ``save`` wrote.

        Raises:
            MissingFileError: one of the files does not exist.
            DamagedFileError: they are damaged, do not belong together, or are not a router of this version.
        """
        path = folder / "router.json"
        body = read_json(path)
        if not isinstance(body, dict) or (body.get("format"), body.get("schema")) != (FORMAT, SCHEMA):
            found = (body.get("format"), body.get("schema")) if isinstance(body, dict) else type(body).__name__
            raise _damaged(path, f"format and schema are {found}, expected {(FORMAT, SCHEMA)}")
        if digest({key: value for key, value in body.items() if key != "sha256"}) != body.get("sha256"):
            raise _damaged(path, "its sha256 is another than its own record")
        tensors_path = folder / "router.safetensors"
        try:
            verify_sha256(tensors_path, body["tensors_sha256"], todo=FIT_AGAIN)
            spec = TEXT_PARTITION.validate_python({"kind": body["kind"], **body["settings"]})
            return cls(spec, body["students"], load(tensors_path.read_bytes()), body["width"], body["balance"])
        except (KeyError, TypeError, ValidationError) as e:
            raise _damaged(path, f"{type(e).__name__}: {e}") from None
        except PartitionError as e:
            raise _damaged(path, e.why) from None


def _check(spec: TextPartitionSpec, students: int, tensors: Tensors, width: int | None) -> None:
    """Refuse tensors of other names, types or shapes, or that are not finite."""
    shapes: dict[str, tuple[type, tuple[int | None, ...]]] = {}
    if isinstance(spec, TextKMeans):
        shapes = {"centres": (np.float32, (students, width)), "offsets": (np.float64, (students,))}
    elif isinstance(spec, Quadrants):
        levels = students.bit_length() - 1
        shapes = {"directions": (np.float32, (levels, width)), "thresholds": (np.float64, (students - 1,))}
    expected = {name: f"{np.dtype(dtype)} {shape}" for name, (dtype, shape) in shapes.items()}
    found = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in tensors.items()}
    problem = ""
    if students < 1 or (isinstance(spec, Quadrants) and students not in (1, 2, 4)):
        problem = f"{students} students"
    elif found != expected:
        problem = f"tensors are {found}, expected {expected}"
    elif not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        problem = "tensors hold numbers that are not finite"
    if problem:
        raise PartitionError(
            f"These are not the tensors of a router of kind {spec.kind}.", why=problem, todo="Fit the router again."
        )


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        "A file is not a router of prompts of this version.", where=str(path), why=why, todo=FIT_AGAIN
    )
