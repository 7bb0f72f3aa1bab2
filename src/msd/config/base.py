"""What all parts of the configuration share."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0)]
Sha256: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Commit: TypeAlias = Annotated[
    str, Field(pattern="^[0-9a-f]{40}$", description="a commit, so that its files cannot change")
]
TEACHER = "teacher"  # the name of the teacher's own architecture among the networks


class Section(BaseModel):
    """A part of the configuration. Refuses keys it does not know; cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def merge(base: Any, overlay: Any) -> Any:
    """Overlay mappings key by key; ``variants``, and a block whose ``source`` or ``kind`` changes, replace the old."""
    if not (isinstance(base, Mapping) and isinstance(overlay, Mapping)):
        return overlay
    if any(tag in overlay and overlay[tag] != base.get(tag) for tag in ("source", "kind")):
        return overlay
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = value if key == "variants" else merge(base.get(key), value)
    return merged


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
