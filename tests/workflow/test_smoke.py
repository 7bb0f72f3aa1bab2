"""The whole embedded experiment, every stage and every row, with so few images that the numbers mean nothing."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from working_copy import WorkingCopy

from msd.config import load
from msd.plan import Plan
from msd.store import Manifest, sha256_file

SMOKE = "experiments/smoke.yaml"
COLUMNS = [
    "variant",
    "students",
    "parameters_per_student",
    "nfe",
    "images_per_student",
    "images_total",
    "fd_digits",
    "precision",
    "recall",
    "asked_class_share",
    "latency_p50_ms",
    "training_seconds",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(copy: WorkingCopy) -> WorkingCopy:
    copy.run("all", configfile=SMOKE)
    return copy


@pytest.fixture(scope="module")
def table(smoke: WorkingCopy) -> pd.DataFrame:
    return pd.read_csv(smoke.results("smoke") / "ablation.csv")


@pytest.fixture(scope="module")
def plan(smoke: WorkingCopy) -> Plan:
    return Plan(load(smoke.folder / "params.yaml", [smoke.folder / SMOKE]), smoke.folder / "results")


def test_table_has_every_row_and_column(table: pd.DataFrame, plan: Plan) -> None:
    assert list(table.columns) == COLUMNS
    assert list(table.variant) == list(plan.variants)
    assert not table.isna().any(axis=None)


def test_table_says_what_was_planned(table: pd.DataFrame, plan: Plan) -> None:
    rows = table.set_index("variant")
    assert rows.nfe.drop("teacher").eq(1).all()
    assert rows.nfe["teacher"] == 7  # 4 steps of Heun
    for name, variant in plan.variants.items():
        if variant.students:
            assert rows.students[name] == len(variant.students)
            chain = [node.settings["recipe"]["images"] for node in variant.students[0].stages]
            assert rows.images_per_student[name] == sum(chain), name
    assert rows.images_total["msd4"] == rows.images_total["single-matched-compute"] == 4 * rows.images_total["single"]
    assert rows.images_total["msd4-equal-total"] == rows.images_total["single"]
    assert rows.parameters_per_student["msd4-small"] < rows.parameters_per_student["msd4"]


def test_every_node_left_a_whole_manifest(plan: Plan) -> None:
    for node in plan:
        manifest = Manifest.read(node.manifest)
        for name in manifest.body["files"]:
            assert manifest.file(name).exists()
        for role, record in manifest.body["inputs"].items():
            assert record["sha256"] == sha256_file(node.inputs[role].manifest), f"{node.label}: {role}"


def test_report_and_figures_are_there(smoke: WorkingCopy) -> None:
    results = smoke.results("smoke")
    page = (results / "report.html").read_text()
    assert "msd4-equal-total" in page
    assert "<script" not in page
    assert len(list((results / "figures").glob("*.png"))) >= 3
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics
    assert "| msd4 |" in (results / "ablation.md").read_text()


def test_second_run_does_nothing(smoke: WorkingCopy) -> None:
    assert "Nothing to be done" in smoke.run("all", configfile=SMOKE)
