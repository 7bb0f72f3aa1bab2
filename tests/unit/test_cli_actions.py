"""Actions of a subcommand (`msd data pack`) explain themselves, and the stage beside them works as before."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import some_images, write_npz

from msd.cli.actions import CommandParser
from msd.cli.main import build_parser, main
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


def test_out_that_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_npz(tmp_path / "a.npz", *some_images())
    out = tmp_path / "out"
    out.write_text("a file")
    assert main(["data", "pack", str(source), str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("msd: FileExistsError: File exists: ")
    assert str(out) in line
    assert "permissions" in line
    assert out.read_text() == "a file"


def test_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", *some_images())
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (2000, r.getrlimit(r.RLIMIT_FSIZE)[1]))"
    call = f"main(['data', 'pack', {str(source)!r}, {str(tmp_path / 'out')!r}])"
    code = f"{limit}; import sys; from msd.cli.main import main; sys.exit({call})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("msd: OSError: ")
    assert "room on its disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
