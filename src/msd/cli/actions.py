"""Subcommands with actions of their own: ``msd data pack SOURCE OUT`` beside ``msd data [manifest]``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A subcommand's parser. If its first argument names one of its actions, that action's parser takes the rest.

    Attributes:
        actions: name → parser.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actions: dict[str, argparse.ArgumentParser] = {}

    def add_action(
        self, name: str, run: Callable[[argparse.Namespace], None], summary: str, examples: Sequence[str]
    ) -> argparse.ArgumentParser:
        """Add an action and return its parser, for its own arguments."""
        action = argparse.ArgumentParser(prog=f"{self.prog} {name}", **texts(summary, examples))
        action.set_defaults(run=run)
        self.actions[name] = action
        self.add_argument_group(action.prog, f"{action.description} See `{action.prog} --help`.")
        return action

    def parse_known_args(  # type: ignore[override]  # argparse declares overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, after a look at the first argument."""
        if args and args[0] in self.actions:
            return self.actions[args[0]].parse_known_args(args[1:], namespace)
        return super().parse_known_args(args, namespace)


def texts(summary: str, examples: Sequence[str]) -> dict[str, Any]:
    """What every parser says of itself: a description, and examples at the end."""
    return {
        "description": f"{summary[0].upper()}{summary[1:]}.",
        "epilog": "examples:\n" + "\n".join(f"  {example}" for example in examples),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
