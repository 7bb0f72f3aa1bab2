"""The toy's runs: cells that are kept, the figure, the map and their words, and the settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_fixtures import experiment, make_results
from small_toy import plan, quiet
from tiny import ROOT

from msd import config
from msd.config import load
from msd.errors import ConfigError, MissingFileError
from msd.plan import Plan
from msd.report import toy as figures
from msd.report.build import build_report
from msd.store import Manifest, read_json
from msd.toy import summary
from msd.toy.cells import Cell, finish, path_of
from msd.toy.run import run_figure


def test_finished_cells_are_kept(toy: config.Toy, tmp_path: Path) -> None:
    cells = [Cell(2, 3, 128), Cell(2, 6, 128), Cell(2, 3, 256)]
    seen: list[tuple[str, int, int]] = []
    first = finish(toy, cells[:2], tmp_path, lambda k, n, total, _: seen.append((k, n, total)))
    assert seen[-1] == ("K = 2 (1 of 1)", 128, 128)
    times = {cell: m.path.stat().st_mtime_ns for cell, m in first.items()}
    seen.clear()
    finish(toy, cells[:2], tmp_path, lambda *_: seen.append(("", 0, 0)))
    assert not seen
    path_of(toy, cells[1], tmp_path).unlink()
    again = finish(toy, cells, tmp_path, quiet)
    assert again[cells[0]].path.stat().st_mtime_ns == times[cells[0]]
    assert again[cells[1]].results["l1"] == pytest.approx(first[cells[1]].results["l1"], rel=1e-4)
    assert again[cells[2]].results["l1"] != again[cells[0]].results["l1"]
    other = toy.model_copy(update={"seeds": [0, 1, 3]})
    assert path_of(other, cells[0], tmp_path) != path_of(toy, cells[0], tmp_path)


def test_a_killed_run_keeps_what_it_has(toy: config.Toy, tmp_path: Path) -> None:
    cells = [Cell(1, 3, 32), Cell(1, 3, 256)]

    def kill(_: str, done: int, *__: Any) -> None:
        if done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(toy, cells, tmp_path, kill)
    assert [path_of(toy, cell, tmp_path).exists() for cell in cells] == [True, False]
    assert finish(toy, cells, tmp_path, quiet)[cells[1]].results["images_total"] == 256


def test_the_map_is_complete(made: Plan) -> None:
    assert made.toy_map is not None
    value = read_json(Manifest.read(made.toy_map.manifest).file("map"))
    assert {(c["width"], c["images_total"], c["students"]) for c in value["cells"]} == {
        (w, i, k) for w in (3, 6) for i in (256, 512) for k in (1, 2)
    }
    by_place: dict[tuple[int, int], set[int]] = {}
    for cell in value["cells"]:
        by_place.setdefault((cell["width"], cell["images_total"]), set()).add(cell["flops"])
        assert len(cell["l1"]) == 3
        assert cell["l1_interval"][0] < cell["l1_mean"] < cell["l1_interval"][1]
    assert all(len(flops) == 1 for flops in by_place.values()), "equal total compute"
    text = "\n".join(summary(value))
    assert "Of 4 places" in text
    assert "Width 3" in text


def test_the_words_follow_the_numbers() -> None:
    def place(width: int, images: int, ratio: float, tie: bool) -> dict[str, Any]:
        interval = [ratio - 0.05, ratio + 0.05]
        return {
            "width": width,
            "images_total": images,
            "ratio": ratio,
            "ratio_interval": interval,
            "tie": tie,
            "best_many": 4,
        }

    value = {
        "seeds": [0, 1, 2], "budgets": [1000, 2000], "students": [1, 4], "widths": [4, 8], "cpu_seconds": 120,
        "machine": {"cpu": "a cpu"}, "command": "msd toy --map", "settings_digest": "0123",
        "map": [place(4, 1000, 1.2, False), place(4, 2000, 0.8, False), place(8, 1000, 1.3, False),
                place(8, 2000, 0.99, True)],
    }  # fmt: skip
    text = "\n".join(summary(value))
    assert "in 1 and farther in 2; in 1 the 95 %" in text
    assert "Width 4: many students win at 2 k images and more; most at 2 k, K = 4, ratio 0.80" in text
    assert "Width 8: no K > 1 wins beyond a tie" in text


def test_pictures_and_data_for_the_docs(made: Plan, tmp_path: Path) -> None:
    assert made.toy is not None
    assert made.toy_map is not None
    paths = figures.publish(made.toy, made.toy_map, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        "claims/toy2d.json", "images/toy2d.png", "images/toy2d-l1.png", "images/toy2d-map.png",
    ]  # fmt: skip
    value = json.loads(paths[0].read_text())
    assert [r["students"] for r in value["figure"]] == [1, 2]
    for path in paths[1:]:
        assert len(Image.open(path).convert("L").getcolors() or []) > 20
    again = figures.figure(Manifest.read(made.toy.manifest), tmp_path / "again.png")
    assert again.path.read_bytes() == paths[1].read_bytes()
    assert "3 seeds" in again.caption


def test_docs_need_the_runs(tmp_path: Path) -> None:
    nothing = plan(tmp_path)
    assert nothing.toy is not None
    assert nothing.toy_map is not None
    with pytest.raises(MissingFileError):
        figures.publish(nothing.toy, nothing.toy_map, tmp_path)


def test_the_toy_opens_the_report(made: Plan, toy: config.Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no claims are kept, which would come first
    found = make_results(tmp_path / "results", experiment({"pair": {"students": 2}}).model_copy(update={"toy": toy}))
    assert found.toy is not None
    run_figure(found.toy, made.toy_cells, quiet)
    report = build_report(found)
    assert report.file("figures/toy.png").stat().st_size > 10_000
    titles = re.findall("<h2>(.*?)</h2>", report.file("report.html").read_text())
    assert titles[:2] == ["The idea in two dimensions", "Every variant at a glance"]
    assert len(report.body["inputs"]) == len(list(found))


def test_the_plan_has_the_toy_as_a_node_of_its_own() -> None:
    whole, without = Plan(load(ROOT / "params.yaml")), Plan(load(ROOT / "params.yaml", (), ["toy=null"]))
    assert whole.toy is not None
    assert {n.manifest for n in whole} - {n.manifest for n in without} == {whole.toy.manifest}
    assert {n.manifest for n in without} <= {n.manifest for n in whole}
    assert without.toy is without.toy_map is None
    longer = Plan(load(ROOT / "params.yaml", (), ["toy.map.widths=[5]"]))
    assert longer.toy == whole.toy
    assert longer.toy_map != whole.toy_map


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("toy.widht=3", "toy.widht: unknown key; did you mean 'width'?"),
        ("toy.students=[1, 3]", "3 students cannot share 8 conditions"),
        ("toy.students=[2, 4]", "must name 1"),
        ("toy.seeds=[0, 1]", "at least 3 items"),
        ("toy.seeds=[0, 1, 1]", "seeds must name each once"),
        ("toy.dm.student.clip_norm=1", "tie them together"),
        ("toy.dm.regression=null", "dm.regression must be there"),
        ("toy.map.images=[100]", "100 cannot be shared"),
        ("toy.dm.teacher_guidance=2", "no guidance"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match="The configuration has 1 problem") as e:
        load(ROOT / "params.yaml", (), [setting])
    assert message in str(e.value)


def test_a_missing_file_of_the_toy_is_named() -> None:
    with pytest.raises(MissingFileError, match="no-such-toy"):
        load(ROOT / "params.yaml", (), ["toy=no-such-toy.yaml"])
