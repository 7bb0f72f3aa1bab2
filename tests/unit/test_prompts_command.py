"""``msd prompts``: from a file of captions to the student that owns a prompt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from msd.cli.main import main
from msd.store import read_json
from msd.text.tiny import make_tiny_encoder

ANIMALS = ["cat", "dog", "owl", "newt", "frog", "hen", "cow", "ant"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    make_tiny_encoder([f"a {name} on grass" for name in ANIMALS], folder, vocabulary=520, length=16, width=32, layers=1)
    return folder


def test_from_captions_to_an_owner(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions, out = tmp_path / "captions.txt", {name: str(tmp_path / name) for name in ("packed", "embedded", "router")}
    captions.write_text("\n".join([*(f"a {name} on grass" for name in ANIMALS), "a cat on grass", "", " a bat "]))
    assert main(["prompts", "pack", str(captions), out["packed"]]) == 0
    assert "9 of 11 prompts kept, 1 empty (rows 9), 1 duplicates (rows 8), 1 stripped" in capsys.readouterr().out
    assert main(["prompts", "embed", out["packed"], str(encoder), out["embedded"]]) == 0
    assert "9 prompts, 16 tokens of 32 numbers" in capsys.readouterr().out
    arguments = [out["packed"], out["embedded"], out["router"], "--kind", "text-kmeans", "--students", "3"]
    assert main(["prompts", "split", *arguments]) == 0
    assert re.findall(r"^\d: (\d) prompts", capsys.readouterr().out, re.M) == ["3", "3", "3"]
    told = read_json(tmp_path / "router/parts.json")
    assert main(["prompts", "route", out["router"], str(encoder), told["parts"][1]["examples"][0], "unseen", ""]) == 0
    owners = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert owners[0] == "1"
    assert set(owners) <= {"0", "1", "2"}


def test_a_folder_without_prompts_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "embed", str(tmp_path), str(tmp_path), str(tmp_path / "out")]) != 0
    assert "manifest.json" in capsys.readouterr().err
