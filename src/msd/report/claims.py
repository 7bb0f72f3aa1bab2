"""The paper's claims with our verdicts, as the page shows them first. They are judged elsewhere, from several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from msd.errors import DamagedFileError
from msd.store import read_json


@dataclass(frozen=True)
class Claim:
    """One row of the claims' table; names stand in backticks.

    Attributes:
        number: the claim's, the same for all data sets.
        claim: what should hold, a sentence.
        paper: what the paper says of it, with its numbers.
        here: what was measured here.
        verdict: a word or two, ``holds`` say.
    """

    number: str
    claim: str
    paper: str
    here: str
    verdict: str


def read_claims(path: Path) -> list[Claim]:
    """The claims of a JSON file: a list of objects with the fields of ``Claim``; further fields are passed over.

    Raises:
        MissingFileError, DamagedFileError: there is no such file, or it holds something else.
    """
    body = read_json(path)
    names = [field.name for field in fields(Claim)]
    for entry in body if isinstance(body, list) else [body]:
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), str) for name in names):
            raise DamagedFileError(
                "A file does not hold a list of claims.",
                where=str(path),
                why=f"each needs the texts {', '.join(names)}; found {_short(entry)}",
            )
    return [Claim(**{name: entry[name] for name in names}) for entry in body]


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 80 else text[:79] + "…"
