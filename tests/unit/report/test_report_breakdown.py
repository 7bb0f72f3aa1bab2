"""The report's sections on who is good at what and on cost: numbers of the manifests, floors beside them, no gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_fixtures import VARIANTS, experiment, make_results, refresh, rewrite

from msd.errors import DamagedFileError
from msd.plan import Plan
from msd.report import breakdown, broken_down, cost
from msd.report.build import build_report
from msd.report.read import read
from msd.store import Manifest

STUDENTS = [name for name in VARIANTS if name != "teacher"]


def results(plan: Plan, variant: str) -> dict:
    node = plan.variants[variant].breakdown
    assert node is not None
    return Manifest.read(node.manifest).results


def test_breakdown_csv_has_the_matrix_and_a_floor_in_every_line(built: Plan) -> None:
    table = pd.read_csv(built.root / "breakdown.csv")
    assert list(table.variant.unique()) == STUDENTS
    assert (table.floor > 0).all()
    assert (table.floor_images == table.images).all()
    parts = table[(table.variant == "msd4") & (table.what == "part")]
    found = parts.pivot(index="which", columns="student", values="distance").to_numpy()
    assert np.allclose(found, [part["distance"] for part in results(built, "msd4")["parts"]])
    assert parts[parts.routed][["which", "student"]].to_numpy().tolist() == [[k, k] for k in (1, 2, 3, 4)]
    one = table[(table.variant == "msd4") & (table.what == "class")].set_index("which")
    assert list(one.index) == list(range(10))
    assert one.student[9] == 4
    assert one.distance[3] == results(built, "msd4")["classes"][3]["distance"]
    assert (table.what == "all").sum() == len(STUDENTS)


def test_nearest_csv_has_both_spaces(built: Plan) -> None:
    table = pd.read_csv(built.root / "nearest.csv")
    assert list(zip(table.variant, table.space, strict=True)) == [
        (name, space) for name in STUDENTS for space in ("pixels", "features")
    ]
    assert table.near_share.between(0, 1).all()


def test_cost_csv_is_the_manifests_and_shared_stages_count_once(built: Plan) -> None:
    table = pd.read_csv(built.root / "cost.csv").set_index("variant")
    assert list(table.index) == list(VARIANTS)
    assert np.isnan(table.training_flops["teacher"])
    assert table.joules_per_image.isna().all()
    assert table.parameters["msd4"] == 4 * table.parameters_per_student["msd4"]
    for name in STUDENTS:
        assert table.training_flops[name] == 300_000_000 * table.images_total[name]  # one tsm for msd4-small's four


def test_page_says_what_biases_the_numbers_and_what_is_not_reported(built: Plan) -> None:
    text = (built.root / "report.html").read_text()
    for words in ("biased upwards", "as many real <em>training</em> images", "no decoder", "not reported"):
        assert words in text, words
    assert text.count('id="who"') == text.count('id="cost"') == 1
    assert "`" not in text.split('id="who"')[1].split('id="galleries"')[0]
    assert "<script" not in text


def test_sentence_says_who_is_best_whatever_the_numbers_are(built: Plan) -> None:
    (broken,) = (b for b in breakdown.read(built, read(built)) if b.row.name == "msd4")
    assert "the best student for 4 of 4 parts" in broken_down.sentence(broken)
    for part in broken.parts[:3]:
        part["distance"] = part["distance"][::-1]
    assert "the best student for 1 of 4 parts" in broken_down.sentence(broken)


def test_pictures_are_drawn_for_every_row_and_matrices_where_there_are_several_students(built: Plan) -> None:
    names = {path.stem for path in (built.root / "figures").glob("*.png")}
    assert {f"nearest-{name}" for name in STUDENTS} <= names
    assert {name for name in names if name.startswith("students-msd4")} == {
        f"students-{name}" for name in ("msd4", "msd4-equal-total", "msd4-small")
    }
    assert not any(name.startswith("students-single") for name in names)
    picture = np.asarray(Image.open(built.root / "figures" / "students-msd4.png").convert("RGB")).astype(int)
    orange = (picture[..., 0] - picture[..., 2]) > 150
    rows_of_frames = [orange[:, x].any() for x in (60, picture.shape[1] - 60)]
    assert rows_of_frames == [True, True]
    # student 1 is framed at the top, student 4 at the bottom
    half = picture.shape[0] // 2
    assert orange[:half, :300].any()
    assert not orange[half:, :300].any()
    assert orange[half:, -300:].any()
    assert not orange[:half, -300:].any()


def test_many_classes_and_students_are_drawn_too(tmp_path: Path) -> None:
    many = {"msd12": {"students": 12}, "msd2": {"students": 2}}
    report = read(plan := make_results(tmp_path, experiment(many), classes=48))
    figures = breakdown.draw_all(breakdown.read(plan, report), tmp_path)
    assert [figure.path.stem for figure in figures] == [
        "students-by-part",
        "by-class",
        "students-msd12",
        "students-msd2",
        "nearest-msd12",
        "nearest-msd2",
    ]


def test_a_teacher_alone_has_costs_and_no_breakdown(tmp_path: Path) -> None:
    plan = make_results(tmp_path, experiment({"teacher": {"model": "teacher"}}))
    build_report(plan)
    text = (plan.root / "report.html").read_text()
    assert 'id="cost"' in text
    assert 'id="who"' not in text
    assert "#who" not in text


def test_another_metric_is_refused(tmp_path: Path) -> None:
    plan = make_results(tmp_path, experiment({"single": {"students": 1}}))
    node = plan.variants["single"].breakdown
    assert node is not None
    rewrite(node, metric=results(plan, "single")["metric"] | {"features_sha256": "0" * 64})
    refresh(node)
    with pytest.raises(DamagedFileError, match="measured differently from the table") as refused:
        build_report(plan)
    assert refused.value.where == str(node.manifest)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3, 1, 2], "1–3"), ([0, 1, 5], "0, 1, 5"), ([7], "7"), ([0, 2, 4, 6, 8, 10, 12], "0, 2, 4, 6, …")],
)
def test_classes_are_listed_short(numbers: list[int], text: str) -> None:
    assert breakdown.listed(numbers, 14) == text


@pytest.mark.parametrize(
    ("value", "text"), [(27_172_096, "27 M"), (1.435e12, "1.4 T"), (803e9, "803 G"), (5e20, "500 E"), (999.6e9, "1 T")]
)
def test_flops_have_a_unit(value: float, text: str) -> None:
    assert cost.flops(value) == text
