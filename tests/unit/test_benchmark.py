"""The benchmark of a training update: what its rows are, what it counts, and that its numbers belong together."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT
from torch.utils.flop_counter import FlopCounterMode

from msd.config import Compute

FOLDER = ROOT / "benchmarks"
BATCH, REPEATS = 2, 2


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules beside the script, which Python finds when the script runs."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import rows

    return rows


def settings(row: Any) -> dict[str, Any]:
    return {**row.recipe.model_dump(), **row.compute.model_dump()}


@pytest.mark.parametrize("preset", ["embedded", "imagenet64"])
@pytest.mark.parametrize("base", [(), ("bf16", "micro-half", "teacher-features")], ids=["all off", "some on"])
def test_a_row_differs_from_the_base_in_one_lever(rows: Any, preset: str, base: tuple[str, ...]) -> None:
    found = list(rows.rows_of(preset, rows.LEVERS, base, 8, "cpu", 1))
    bases = {row.update: settings(row) for row in found if row.name == "base"}
    assert set(bases) == {"dm", "dm+adm"}
    assert all(values["precision"] == ("bfloat16" if base else "float32") for values in bases.values())
    others = [row for row in found if row.name != "base"]
    assert len(others) == 2 * len(rows.LEVERS) - 1  # DM has no discriminator
    for row in others:
        changed = {key for key, value in settings(row).items() if value != bases[row.update][key]}
        assert changed == {rows.levers(8)[row.name[2:]].key}


def test_flops_are_those_of_an_eager_update(rows: Any) -> None:
    import measure

    *_, row = rows.rows_of("embedded", [], (), BATCH, "cpu", 1)
    asked = {"update": row.update, "recipe": row.recipe.model_dump(mode="json")}
    (expected,) = measure.count_flops({"preset": "embedded", "rows": [asked]})["flops"]
    step = measure.build_step(measure._teacher("embedded"), row.recipe, Compute(), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        step(0)
    assert counter.get_total_flops() == expected > 0


def test_the_table_and_the_file_say_the_same(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "train_step.py"), "--preset", "embedded", "--device", "cpu"]
    command += ["--batch", str(BATCH), "--levers", "none", "--repeats", str(REPEATS), "--warmup", "1"]
    ended = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "benchmark-embedded-cpu.json").read_text())
    assert ended.stdout == (tmp_path / "benchmark-embedded-cpu.md").read_text()
    assert [(row["update"], row["row"]) for row in report["rows"]] == [("dm", "base"), ("dm+adm", "base")]
    for row in report["rows"]:
        assert len(row["seconds"]) == REPEATS
        median, per_call = statistics.median(row["seconds"]), BATCH * row["recipe"]["two_time_scale_ratio"]
        assert row["images_per_second"] == pytest.approx(per_call / median)
        assert row["student_images_per_second"] == pytest.approx(BATCH / median)
        assert row["flops_per_second"] == pytest.approx(row["flops"] / median)
        assert row["flops"] > 0
        assert row["share_of_peak"] > 0
        assert row["peak_bytes"] > row["idle_bytes"] > 0
        assert f"| {row['update']} | base | " in ended.stdout
    assert report["rows"][1]["flops"] > report["rows"][0]["flops"]


def test_an_unknown_lever_is_named_with_the_nearest(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "train_step.py"), "--levers", "bf61", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "did you mean 'bf16'" in ended.stderr
