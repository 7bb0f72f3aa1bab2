"""The pieces that a plan is made of: nodes, each one piece of work, and the chains of them that students are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from msd.store import canonical_json, digest

DIGEST_LENGTH = 8


@dataclass(frozen=True)
class Node:
    """One piece of work, done by one call of ``msd``.

    Attributes:
        kind: the stage, and the name of its rule and subcommand.
        group: folder under the experiment's results.
        name: readable part of the folder's name.
        settings: everything that decides its outcome, apart from its inputs.
        inputs: role → node before it.
        root: folder of the experiment's results.
        label: what a person calls it.
    """

    kind: str
    group: str
    name: str
    settings: dict[str, Any]
    inputs: dict[str, Node]
    root: Path
    label: str = field(compare=False, default="")

    @cached_property
    def digest(self) -> str:
        """Of the settings and, through their digests, of all that comes before."""
        before = {role: node.digest for role, node in self.inputs.items()}
        return digest({"kind": self.kind, "settings": self.settings, "inputs": before}, DIGEST_LENGTH)

    @property
    def images(self) -> int:
        """How many it trains on; 0 if it trains nothing."""
        settings = self.settings.get("recipe") or self.settings.get("training") or {}
        return settings.get("images", 0)

    @property
    def manifest(self) -> Path:
        """The declared output: proof that the work is complete."""
        return self.root / self.group / f"{self.name}-{self.digest}" / "manifest.json"

    def reads(self, folder: str) -> bool:
        """Whether its settings name a file or folder in this one, which no input says."""
        return f'"{folder}/' in canonical_json(self.settings)

    @property
    def input_paths(self) -> dict[str, Path]:
        """Role → manifest of each input."""
        return {role: node.manifest for role, node in self.inputs.items()}


@dataclass(frozen=True)
class StudentPlan:
    """The chain of one student.

    Attributes:
        stages: its training nodes in order, the shared tsm among them where there is one.
    """

    stages: list[Node]

    @property
    def last(self) -> Node:
        return self.stages[-1]


@dataclass(frozen=True)
class VariantPlan:
    """What one row of the table needs."""

    name: str
    partition: Node | None
    students: list[StudentPlan]
    bundle: Node
    evaluation: Node
    breakdown: Node | None


@dataclass(frozen=True)
class TextPlan:
    """What an experiment of text to image has beside.

    Attributes:
        captions: the images, labelled by their captions.
        components: autoencoder, tokenizer and text encoder.
        embeddings: of the captions.
        latents: of the training images.
        dropout: share of captions that a teacher's training replaces by the empty prompt.
    """

    captions: Node
    components: Node
    embeddings: Node
    latents: Node
    dropout: float
