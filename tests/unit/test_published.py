"""The paper's tables with our column: what stands where, and that LaTeX would read it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_fixtures import VARIANTS, experiment, make_results
from tiny import ROOT

from msd.config import Experiment, load
from msd.errors import DamagedFileError
from msd.plan import Plan
from msd.report.build import build_report
from msd.report.published import Published, Table, _matches, escape, latex, markdown, published, tables, write_tables
from msd.store import Manifest, read_json, write_json

ABLATION = {
    "single": {"students": 1, "stages": ["dm"]},
    "msd4": {"students": 4, "stages": ["dm"]},
    "msd4-equal-total": {"students": 4, "images": 0.25, "stages": ["dm"]},
    "msd4-random": {"students": 4, "stages": ["dm"], "partition": {"kind": "random"}},
    "whole": {"students": 4},
    "odd": {"students": 2, "stages": ["dm"], "recipe": {"dm": {"two_time_scale_ratio": 3}}},
}


def reported(folder: Path, config: Experiment) -> Plan:
    """A finished experiment with its report."""
    plan = make_results(folder, config)
    build_report(plan)
    return plan


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return reported(tmp_path_factory.mktemp("mnist"), experiment(ABLATION))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    variants = {name: VARIANTS[name] for name in ("teacher", "single", "msd4", "msd4-small")}
    return reported(tmp_path_factory.mktemp("imagenet"), experiment(variants, name="imagenet64"))


def ours(table: Table) -> list[str]:
    return [row[-1] for row in table.rows]


def test_every_published_number_has_a_source_and_is_shown() -> None:
    content = published()
    assert list(content.tables) == ["table1", "table2", "table3"]
    for table in content.tables.values():
        assert all(len(row.cells) == len(table.headings) for row in table.rows)
        assert all(re.search(r"arXiv \d{4}\.\d{5}$", content.sources[row.source]) for row in table.rows)
    with pytest.raises(ValueError, match="fdi"):
        Published.model_validate({"sources": {}, "tables": {"x": {"title": "", "headings": [], "rows": [{"fdi": 1}]}}})


def test_without_results_our_column_is_empty(tmp_path: Path) -> None:
    for table in tables(Plan(experiment(), results=tmp_path)):
        assert set(ours(table)) == {"–"}
        assert table.notes[-1] == "–: not run."


def test_another_experiment_fills_the_ablation_alone(mnist: Plan) -> None:
    one, two, three = tables(mnist)
    assert set(ours(one) + ours(two)) == {"–"}
    assert "Ours: experiment `imagenet64`, not `mnist`." in one.notes
    value = {
        name: Manifest.read(variant.evaluation.manifest).results["metrics"]["fd_digits"]
        for name, variant in mnist.variants.items()
    }
    # dm alone fills most rows; whole has the adversarial stage, odd another recipe
    assert ours(three) == [
        f"{value['single']:.1f} (`single`)",
        f"{value['msd4-equal-total']:.1f} (`msd4-equal-total`)",
        "–",
        f"{value['msd4']:.1f} (`msd4`)",
        "–",
        "–",
        f"{value['msd4-random']:.1f} (`msd4-random`)",
    ]
    notes = "\n".join(three.notes)
    assert "stages dm." in notes
    assert "fd_digits is not FID" in notes
    digest = read_json(mnist.report)["results"]["numbers"]["manifests"]
    path = f"evaluation/msd4-{mnist.variants['msd4'].evaluation.digest}/manifest.json"
    assert f"msd4 `{digest[path][:8]}`" in notes


def test_its_own_experiment_fills_a_table(imagenet: Plan) -> None:
    one, two, _ = tables(imagenet)
    assert set(ours(two)) == {"–"}
    named = dict(zip([row[0] for row in one.rows], ours(one), strict=True))
    assert named["MSD, 4 students, adversarial (ADM)"].endswith("(`msd4`)")
    assert named["DMD2"].endswith("(`single`)")
    assert named["EDM teacher, ODE"].endswith("(`teacher`)")
    # 77 % fewer parameters are not 42 %, and nothing was trained by dm alone or sampled stochastically
    assert {v for k, v in named.items() if k.startswith(("MSD, 4 students of", "DMD2,", "MSD, 4 students, DM"))} == {
        "–"
    }
    assert named["EDM teacher, SDE"] == named["DMD"] == "–"


def test_the_rows_of_the_text_recipe_are_those_of_its_table(tmp_path: Path) -> None:
    plan = Plan(load(ROOT / "params.yaml", [ROOT / "experiments/sd15-coco.yaml"]), tmp_path)
    Manifest.write(plan.teacher.manifest, kind="teacher", settings={}, results={"parameters": 859_520_964})
    variants = {name: v for name, v in plan.experiment.variants.items() if name != "msd4-minus83"}
    rows = [
        {"variant": name, "model": variant.model, "changes": {}, "parameters_per_student": 859_520_964}
        for name, variant in variants.items()
    ]
    found, _ = _matches(published().tables["table2"], plan, {"rows": rows})
    assert [row and row["variant"] for row in found] == ["msd4", "msd4-dm", "single", None, "teacher"]


def test_a_stale_report_is_refused(tmp_path: Path) -> None:
    plan = reported(tmp_path, experiment({"single": {"students": 1, "stages": ["dm"]}}))
    node = plan.variants["single"].evaluation
    write_json(node.manifest, read_json(node.manifest) | {"finished": "later"})
    with pytest.raises(DamagedFileError, match="stale"):
        write_tables(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["mnist", "imagenet"])
def test_written_tables_have_one_shape_in_both_languages(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plan: Plan = request.getfixturevalue(which)
    paths = write_tables(plan, tmp_path)
    assert [path.name for path in paths] == [f"table{i}.{e}" for i in (1, 2, 3) for e in ("tex", "md")]
    for table in tables(plan):
        tex, md = ((tmp_path / f"{table.name}.{ending}").read_text() for ending in ("tex", "md"))
        assert (tex, md) == (latex(table), markdown(table))
        lines = [line for line in md.splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.headings) + 1}
        check_latex(tex, len(table.headings), len(table.rows))


def check_latex(text: str, width: int, height: int) -> None:
    """Environments close in order, braces match, every line of the table has as many cells as the table columns."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    bare = re.sub(r"\\[&%$#_{}\\]", "", text)
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not set(bare) & set("%$#_~^`")
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns is not None
    assert len(columns[1]) == width
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == height + 1
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {width}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5 % of #1 {x} $", r"a\_b \& 5 \% of \#1 \{x\} \$"),
        ("\\~^", r"\textbackslash{}\textasciitilde{}\textasciicircum{}"),
        ("– − 64×64 ↓", r"-- \ensuremath{-} 64\ensuremath{\times}64 \ensuremath{\downarrow}"),
        ("`msd4_x` and `y`", r"\texttt{msd4\_x} and \texttt{y}"),
    ],
)
def test_latex_is_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_hostile_name_stays_in_its_cell() -> None:
    table = Table("t", r"\input{x} & 100 %", ["a|b", "c"], [False, True], [["x & y \\\\ }", "1|2"]], ["{ _"])
    check_latex(latex(table), 2, 1)
    assert r"a\|b" in markdown(table)
