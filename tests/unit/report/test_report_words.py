"""The report's words and numbers for people: table, notes, summary, terminal, README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_fixtures import VARIANTS, experiment, make_results
from report_table import CSV_COLUMNS

from msd.errors import ConfigError, DamagedFileError, MissingFileError
from msd.plan import Plan
from msd.report import columns, summary, table
from msd.report.read import read
from msd.report.readme import BEGIN, END, check_readme, readme_block, update_readme
from msd.report.show import show
from msd.store import read_json


def test_markdown_bolds_the_best_student_and_never_the_teacher(built: Plan) -> None:
    lines = table.markdown(read(built).numbers).splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]}
    at = CSV_COLUMNS.index
    assert rows["single-matched-compute"][at("fd_digits")] == "**22.4**"
    assert rows["single-matched-compute"][at("recall")].startswith("**")
    assert not any("**" in cell for cell in rows["teacher"])
    assert not any("**" in row[at("students")] for row in rows.values())
    # two rows that read the same are equally good
    assert rows["msd4-small"][at("latency_p50_ms")] == rows["single-small"][at("latency_p50_ms")] == "**2.3 ms**"
    assert rows["single"][at("parameters_per_student")] == "0.19 M"
    assert rows["single"][at("images_total")] == "19.2 k"
    assert "fd_digits@" in lines[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (columns.thousands(999), "999"),
        (columns.thousands(1234), "1.2 k"),
        (columns.thousands(64_000), "64 k"),
        (columns.thousands(999_999), "1 M"),
        (columns.millions(44_021), "0.044 M"),
        (columns.millions(295_900_000), "295.9 M"),
        (columns.duration(95.2), "95 s"),
        (columns.duration(750), "12.5 min"),
        (columns.duration(11_520), "3.2 h"),
        (columns.milliseconds(0.456), "0.46 ms"),
        (columns.milliseconds(1234.5), "1,234 ms"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_notes_say_what_a_reader_must_know(built: Plan) -> None:
    numbers = read(built).numbers
    notes = "\n".join(table.notes(numbers))
    assert "fd_digits is not FID" in notes
    assert columns.metric_label(numbers["metric"]) in notes
    assert "2,000 images per row" in notes
    assert numbers["machines"]["latency"][0] in notes
    assert "†" not in notes
    numbers["machines"]["training"] = ["one", "another"]
    assert "times do not compare" in table.machine_note(numbers)


def test_rows_with_another_recipe_are_marked(tmp_path: Path) -> None:
    changed = {"students": 4, "recipe": {"dm": {"two_time_scale_ratio": 3}}}
    plan = make_results(tmp_path, experiment({"single": {"students": 1}, "msd4": changed}))
    numbers = read(plan).numbers
    assert "| msd4 †" in table.markdown(numbers)
    assert "| single " in table.markdown(numbers)
    assert table.change_notes(numbers)[0].startswith("† `msd4` changes the recipe: dm.two_time_scale_ratio = 3")
    assert summary.comparisons(numbers) == []  # more than the number of students differs


@pytest.mark.parametrize(
    ("msd4", "expected"),
    [
        (20.0, ["better than one (`single`", "better than one (`single-matched-compute`", "Best of these: `msd4`"]),
        (
            25.0,
            ["better than one (`single`", "worse than one (`single-matched-compute`", "Best of these: `single-matched"],
        ),
        (28.12, ["as good as one (`single`", "worse than one (`single-matched-compute`"]),
    ],
)
def test_the_summary_says_who_is_best_whoever_it_is(built: Plan, msd4: float, expected: list[str]) -> None:
    numbers = read(built).numbers
    numbers["rows"][2]["fd_digits"] = msd4
    text = summary.paragraph(numbers)
    for part in expected:
        assert part in text
    assert "`msd4` comes closest" in text or msd4 > 22
    assert "the floor" in text


def test_comparisons_pair_what_differs_in_students_alone(built: Plan) -> None:
    found = {(c.many["variant"], c.one["variant"], c.equal) for c in summary.comparisons(read(built).numbers)}
    assert found == {
        ("msd4", "single", "each"),
        ("msd4", "single-matched-compute", "in all"),
        ("msd4-equal-total", "single", "in all"),
        ("msd4-small", "single-small", "each"),
    }


def test_show_is_aligned_and_quick(built: Plan) -> None:
    text = show(built)
    lines = text.splitlines()
    body = lines[3 : 3 + len(VARIANTS)]
    assert [line.split()[0] for line in body] == list(VARIANTS)
    assert all(len(line) <= len(lines[2]) for line in lines[:2] + body)
    assert "22.4*" in text
    assert "Floor: 1.5" in text
    assert text.endswith("report.html")
    code = "import sys, msd.report.show; print({'pandas', 'matplotlib', 'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_readme_block_goes_there_and_back(plan: Plan, tmp_path: Path) -> None:
    readme, picture = tmp_path / "README.md", tmp_path / "docs" / "images" / "overview.png"
    readme.write_text(f"# Title\n\n{BEGIN}\nstale block\n{END}\n\nafter\n")
    path = update_readme(plan, readme, picture)
    assert path == tmp_path / "docs" / "results-mnist.json"
    text = readme.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nafter\n")
    assert "stale block" not in text
    assert readme_block(plan) in text
    assert "](docs/images/overview.png)" in text
    assert picture.stat().st_size < 400_000
    sums = read_json(path)["manifests"]
    assert {
        f"evaluation/{v.evaluation.name}-{v.evaluation.digest}/manifest.json" for v in plan.variants.values()
    } <= set(sums)
    assert all(sha256[:8] in text for sha256 in sums.values())
    check_readme(readme, path)
    update_readme(plan, readme, picture)
    assert readme.read_text() == text
    readme.write_text(text.replace("28.1", "18.1"))
    with pytest.raises(DamagedFileError, match="not those of the numbers"):
        check_readme(readme, path)
    path.write_text(json.dumps(read_json(path)))
    readme.write_text(text)
    check_readme(readme, path)  # the form of the JSON does not matter


def test_a_readme_without_marks_is_refused_untouched(built: Plan, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(ConfigError, match="no place for results"):
        update_readme(built, readme, tmp_path / "overview.png")
    assert readme.read_text() == "# Title\n"
    assert not (tmp_path / "overview.png").exists()
    with pytest.raises(MissingFileError):
        update_readme(built, tmp_path / "none.md", tmp_path / "overview.png")
