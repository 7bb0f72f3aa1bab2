"""How prompts are split among students: by their embedding, or, as a control, by their text alone."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from msd.config.base import Section


class Quadrants(Section):
    """Halves of the first principal component of the embeddings, each halved again along the second."""

    kind: Literal["quadrants"] = "quadrants"


class TextKMeans(Section):
    """Balanced k-means over the prompts' embeddings."""

    kind: Literal["text-kmeans"]
    seed: int = 0


class Hashed(Section):
    """By a hash of the prompt's text: parts that are alike, which shows what the others' meaning is worth."""

    kind: Literal["hash"]
    seed: int = 0


TextPartitionSpec: TypeAlias = Annotated[Quadrants | TextKMeans | Hashed, Field(discriminator="kind")]
TEXT_PARTITIONS = ("quadrants", "text-kmeans", "hash")
TEXT_PARTITION: TypeAdapter[TextPartitionSpec] = TypeAdapter(TextPartitionSpec)
