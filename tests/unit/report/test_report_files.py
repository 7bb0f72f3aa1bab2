"""The report's files: what is written, from what, and what it refuses to be made from."""

from __future__ import annotations

import subprocess
import sys

import pytest
from report_fixtures import VARIANTS, experiment, make_results, refresh, rewrite
from report_table import CSV_COLUMNS, table_of

from msd.errors import DamagedFileError, MissingFileError
from msd.plan import Plan
from msd.report import table
from msd.report.build import build_report
from msd.report.figures import draw_all
from msd.report.read import read
from msd.report.show import show
from msd.store import Manifest, read_json


def test_csv_has_the_variants_in_order_and_raw_numbers(built: Plan) -> None:
    heading, *rows = table_of(built)
    assert heading == CSV_COLUMNS
    assert [row[0] for row in rows] == list(VARIANTS)
    for row in rows:
        results = Manifest.read(built.variants[row[0]].evaluation.manifest).results
        assert row[4] == str(results["images_per_student"])
        assert float(row[6]) == results["metrics"]["fd_digits"]


def test_everything_promised_is_written_and_recorded(built: Plan) -> None:
    manifest = Manifest.read(built.report)
    assert manifest.body["kind"] == "report"
    names = set(manifest.body["files"])
    assert {"ablation.csv", "ablation.md", "metrics.json", "report.html", "figures/overview.png"} <= names
    assert {f"figures/gallery-{name}.png" for name in VARIANTS} <= names
    for name in names:
        manifest.file(name)
    recorded = {(built.root / record["path"]).resolve() for record in manifest.body["inputs"].values()}
    assert recorded == {path.resolve() for path in built.report_inputs}


def test_metrics_json_is_flat(built: Plan) -> None:
    metrics = read_json(built.root / "metrics.json")
    assert list(metrics) == list(VARIANTS)
    assert metrics["single"]["fd_digits"] == 28.12
    assert all(isinstance(value, int | float) for row in metrics.values() for value in row.values())


def test_building_twice_gives_the_same_files(few: Plan) -> None:
    before = Manifest.read(few.report).body["files"]
    stray = few.root / "figures" / "gallery-of-a-variant-that-is-gone.png"
    stray.write_bytes(b"")
    assert build_report(few).body["files"] == before
    assert not stray.exists()


def test_mixing_metrics_is_refused(plan: Plan) -> None:
    node = plan.variants["msd4"].evaluation
    metric = Manifest.read(node.manifest).results["metric"]
    for key, other in (
        ("protocol", "0" * 64),
        ("features_sha256", "0" * 64),
        ("judge_sha256", "0" * 64),
        ("images", 7),
        ("reference_images", 7),
    ):
        rewrite(node, metric=metric | {key: other})
        with pytest.raises(DamagedFileError, match=f"never mixes metrics(.|\n)*{key} is .* for msd4"):
            build_report(plan)


def test_a_floor_of_another_metric_is_refused_but_its_number_of_images_may_differ(plan: Plan) -> None:
    metric = Manifest.read(plan.floor.manifest).results["metric"]
    rewrite(plan.floor, metric=metric | {"features_sha256": "0" * 64})
    with pytest.raises(DamagedFileError, match="for the floor"):
        read(plan)
    rewrite(plan.floor, metric=metric | {"images": 500})
    assert "It rests on 500 images" in table.floor_note(read(plan).numbers)


def test_a_stale_manifest_is_named(plan: Plan) -> None:
    rewrite(plan.variants["single"].bundle, nfe=2)
    with pytest.raises(DamagedFileError) as e:
        build_report(plan)
    assert "stale" in str(e.value)
    assert "/single-" in str(e.value) or "latency" in str(e.value)
    assert str(plan.variants["single"].bundle.manifest) in str(e.value)


def test_a_missing_manifest_a_changed_journal_and_a_missing_result_are_refused(plan: Plan) -> None:
    stage = plan.variants["msd4"].students[2].stages[0]
    journal = Manifest.read(stage.manifest).file("journal")
    text = journal.read_text()
    journal.write_text(text + "{}\n")
    with pytest.raises(DamagedFileError, match=r"events\.jsonl"):
        read(plan)
    journal.write_text(text)
    node = plan.variants["single"].evaluation
    body = node.manifest.read_text()
    node.manifest.write_text(body.replace('"training_seconds"', '"seconds_of_training"'))
    with pytest.raises(DamagedFileError, match=r"no results\.training_seconds"):
        read(plan)
    node.manifest.unlink()
    with pytest.raises(MissingFileError, match=node.manifest.parent.name):
        read(plan)


def test_a_refreshed_chain_is_accepted_again(few: Plan) -> None:
    variant = few.variants["single"]
    rewrite(variant.bundle, nfe=1, extra=True)
    assert variant.breakdown
    for node in (variant.evaluation, variant.breakdown, few.latency):
        refresh(node)
    assert build_report(few)


def test_values_that_are_not_known_are_shown_as_such(few: Plan) -> None:
    variant = few.variants["teacher"]
    empty = {"images_per_student": None, "images_total": None, "training_seconds": None}
    rewrite(variant.evaluation, **empty)
    build_report(few)
    row = dict(zip(*table_of(few)[:2], strict=True))
    assert row["variant"] == "teacher"
    assert row["images_total"] == ""
    assert row["nfe"] == "35"
    assert "–" in (few.root / "ablation.md").read_text().split("| teacher")[1].splitlines()[0]
    assert "training_seconds" not in read_json(few.root / "metrics.json")["teacher"]


def test_other_seeds_are_found_and_nothing_else(few: Plan) -> None:
    assert all(row.replicates == [] for row in read(few).rows)
    for seed in (1, 2):
        node = make_results(few.root.parent, few.experiment, replicate=seed).variants["msd4"].evaluation
        rewrite(node, metrics=Manifest.read(node.manifest).results["metrics"] | {"fd_digits": 24.0 + seed})
    # another recipe under the same seed is another experiment
    changed = experiment({"msd4": {"students": 4, "images": 2}}).model_copy(update={"seed": 3})
    make_results(few.root.parent, changed)
    report = read(few)
    row = next(row for row in report.rows if row.name == "msd4")
    assert [(r.seed, r.distance) for r in row.replicates] == [(1, 25.0), (2, 26.0)]
    drawn = {figure.path.name: figure for figure in draw_all(report, few.root / "figures")}
    assert "3 seeds" in drawn["quality-latency.png"].caption
    rewrite(node, metric=Manifest.read(node.manifest).results["metric"] | {"images": 7})
    with pytest.raises(DamagedFileError, match="for msd4, seed 2"):
        read(few)


def test_show_refuses_a_report_of_other_settings_or_older_results(plan: Plan) -> None:
    other = Plan(experiment({"single": {"students": 1}}), results=plan.root.parent)
    with pytest.raises(DamagedFileError, match="other settings"):
        show(other)
    node = plan.variants["teacher"].evaluation
    rewrite(node, sampling_seconds=9.0)
    with pytest.raises(DamagedFileError, match="stale"):
        show(plan)
    plan.report.unlink()
    with pytest.raises(MissingFileError):
        show(plan)


def test_a_report_is_built_without_torch(few: Plan) -> None:
    """Its import takes about as long as the drawing."""
    code = (
        "import sys; from pathlib import Path; from msd.config import Experiment; from msd.plan import Plan\n"
        "from msd.report.build import build_report\n"
        "build_report(Plan(Experiment.model_validate_json(sys.argv[1]), results=Path(sys.argv[2])))\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, few.experiment.model_dump_json(), str(few.root.parent)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stdout == "False\n", ended.stderr
