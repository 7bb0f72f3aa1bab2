"""DMD2's prompt files (arXiv 2405.14867): a pickle of one list of strings, read without an unpickler.

The few instructions that such a list needs are carried out here, on strings alone; any other ends the reading. So
nothing that a pickle names is ever looked up, let alone run.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from msd.errors import DamagedFileError, DataError, UnsafeFileError

IDLE = {"PROTO", "FRAME"}
TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
MARK, LIST = object(), object()  # on the stack


def pickled_texts(path: Path) -> Iterator[str]:
    """The strings of the list, in order. Memory: that of all strings, since the file may refer back to each.

    Raises:
        UnsafeFileError: the pickle holds more than a list of strings. Nothing was run.
        DataError: the list holds lists.
        DamagedFileError: truncated, or no pickle.
    """
    try:
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # a map cannot be made to set aside memory for a text that is longer than the file
            yield from _texts(pickletools.genops(cast(IO[bytes], content)), str(path))
    except (ValueError, KeyError, IndexError) as e:  # what genops says of damage; a stack or memo that is not filled
        raise DamagedFileError(
            "A pickle of prompts cannot be read.",
            where=str(path),
            why=f"{type(e).__name__}: {e}"[:200],
            todo="Fetch it again, and check its sha256.",
        ) from None


def _texts(operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]], where: str) -> Iterator[str]:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, position in operations:
        name = opcode.name
        if name in TEXTS:
            stack.append(argument)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in PUTS:
            memo[argument] = stack[-1]
        elif name in GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(MARK)
        elif name == "EMPTY_LIST":
            stack.append(LIST)
        elif name in ("APPEND", "APPENDS", "LIST"):
            texts = [stack.pop()] if name == "APPEND" else _above_mark(stack)
            stack += [LIST] if name == "LIST" else []
            if stack != [LIST] or not all(isinstance(text, str) for text in texts):
                raise _no_list(where)
            yield from texts
        elif name == "STOP":
            if stack != [LIST]:
                raise _no_list(where)
        elif name not in IDLE:
            raise UnsafeFileError(
                f"A pickle of prompts holds the instruction {name}. Nothing of it was run.",
                where=f"{where}: byte {position}",
                why="a list of strings needs no such thing",
                todo="Write the prompts as text, one a line, with the code that made the file.",
            )


def _above_mark(stack: list[Any]) -> list[Any]:
    mark = len(stack) - 1 - stack[::-1].index(MARK)
    taken = stack[mark + 1 :]
    del stack[mark:]
    return taken


def _no_list(where: str) -> DataError:
    return DataError("A pickle of prompts is not one list of strings.", where=where)
