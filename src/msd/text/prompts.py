"""Prompts of any known format, cleaned one at a time, with a report of what was found. No PyTorch here.

What is kept is the text as it stands, apart from white space at its ends: case, inner spaces and Unicode form are the
text encoder's business.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from msd.errors import DataError
from msd.text.formats import Row, rows_of

FEW = 5  # rows that a report names


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        source_row: position among all rows of the source, from 0, those that were dropped included.
        image_id: the image that the source says it describes.
    """

    text: str
    source_row: int
    image_id: int | str | None = None


@dataclass
class Found:
    """How many rows have something in common, and the first few of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < FEW:
            self.rows.append(row)


@dataclass
class PromptReport:
    """What was found in a source; filled while it is read.

    Attributes:
        rows: of the source.
        kept: prompts that came out.
        empty: nothing but white space; dropped.
        not_utf8: bytes, or parts of characters, that are no UTF-8, or NUL, as in UTF-16; dropped.
        duplicates: equal to an earlier prompt up to Unicode's composition (NFC) and the amount of white space; dropped
            unless told otherwise.
        stripped: had white space at an end; kept without.
    """

    rows: int = 0
    kept: int = 0
    empty: Found = field(default_factory=Found)
    not_utf8: Found = field(default_factory=Found)
    duplicates: Found = field(default_factory=Found)
    stripped: Found = field(default_factory=Found)

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> PromptReport:
        """From what ``as_dict`` gave."""
        found: dict[str, Any] = {k: Found(**value) if isinstance(value, dict) else value for k, value in plain.items()}
        return cls(**found)

    def __str__(self) -> str:
        """One line for a person."""
        found = [(f.name.replace("_", " "), getattr(self, f.name)) for f in fields(self)[2:]]
        named = [f"{what.count:,} {name} (rows {_listed(what)})" for name, what in found if what.count]
        return ", ".join([f"{self.kept:,} of {self.rows:,} prompts kept", *named])


def _listed(found: Found) -> str:
    return ", ".join(map(str, found.rows)) + (", …" if found.count > len(found.rows) else "")


def read_prompts(
    source: Path,
    report: PromptReport | None = None,
    *,
    format: str | None = None,
    column: str | None = None,
    strict: bool = False,
    keep_duplicates: bool = False,
) -> Iterator[Prompt]:
    """The prompts of a source, cleaned, in its order; see ``cleaned``.

    Args:
        format: one of ``formats.FORMATS``; None: as the suffix says.
        column: of a table; None: the first of ``formats.COLUMNS`` that it has.

    Raises:
        MissingFileError, ConfigError, DamagedFileError, DataError, UnsafeFileError: see ``formats.rows_of``.
    """
    rows = rows_of(source, format, column)
    return cleaned(rows, report or PromptReport(), str(source), strict=strict, keep_duplicates=keep_duplicates)


def cleaned(
    rows: Iterable[Row], report: PromptReport, where: str, *, strict: bool = False, keep_duplicates: bool = False
) -> Iterator[Prompt]:
    """The prompts among rows.

    Args:
        report: filled as far as the prompts have been taken.
        where: the rows' source, for errors.
        strict: refuse text that is no UTF-8, instead of dropping it.
        keep_duplicates: count them, but keep them. Without, 16 bytes of a hash are remembered of each prompt.

    Raises:
        DataError: text is no UTF-8, and ``strict``.
    """
    seen: set[bytes] = set()
    for number, row in enumerate(rows):
        report.rows += 1
        text = decoded(row.text)
        if text is None:
            if strict:
                raise DataError("A prompt is not UTF-8.", where=f"{where}: row {number}", todo="Mend or remove it.")
            report.not_utf8.add(number)
            continue
        stripped = text.strip()
        if not stripped:
            report.empty.add(number)
            continue
        key = key_of(stripped)
        if key in seen:
            report.duplicates.add(number)
            if not keep_duplicates:
                continue
        seen.add(key)
        if stripped != text:
            report.stripped.add(number)
        report.kept += 1
        yield Prompt(stripped, number, row.image_id)


def decoded(text: str | bytes | None) -> str | None:
    """A row as text; None: it is no UTF-8.

    Strings of JSON and pickles may hold halves of characters; what holds NUL is UTF-16, read as if it were UTF-8.
    """
    try:
        plain = text.decode() if isinstance(text, bytes) else text or ""
        plain.encode()
    except UnicodeError:
        return None
    return None if "\0" in plain else plain


def key_of(text: str) -> bytes:
    """What prompts that count as equal have in common, 16 bytes."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()
