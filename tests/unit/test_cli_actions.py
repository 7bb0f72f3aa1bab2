"""Actions of a subcommand (`msd data pack`) explain themselves, and the stage beside them works as before."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from msd.cli.actions import CommandParser
from msd.cli.main import build_parser
from msd.cli.stages import STAGES


def commands() -> dict[str, CommandParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


ACTIONS = [(command, action) for command, parser in commands().items() for action in parser.actions]


@pytest.mark.parametrize(("command", "action"), ACTIONS)
def test_every_action_explains_itself_with_examples_that_parse(command: str, action: str) -> None:
    assert f"msd {command} {action}" in commands()[command].format_help()
    parser = commands()[command].actions[action]
    assert (parser.description or "").endswith(".")
    examples = parser.format_help().split("examples:\n")[1].strip().splitlines()
    assert examples
    for example in examples:
        words = shlex.split(example.split(" > ")[0])
        assert words[:3] == ["msd", command, action]
        assert build_parser().parse_args(words[1:]).run is parser.get_default("run")
    for argument in parser._actions:
        assert argument.help, f"msd {command} {action} {argument.dest}"


@pytest.mark.parametrize("command", sorted({command for command, _ in ACTIONS if command in STAGES}))
def test_stage_beside_an_action_still_takes_a_manifest(command: str) -> None:
    path = "results/mnist/x/x-00000000/manifest.json"
    assert build_parser().parse_args([command, path]).manifest == Path(path)
    assert build_parser().parse_args([command]).manifest is None


def test_action_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["data", "pack"])
    assert ended.value.code == 2
    assert "usage: msd data pack" in capsys.readouterr().err
