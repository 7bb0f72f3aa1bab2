"""The shipped comparison is fair: rows differ by what they say they differ by, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import ROOT

from msd.config import StudentVariant, TeacherVariant, load
from msd.plan import Node, Plan, VariantPlan

MAY_DIFFER = {"students", "partition", "images", "network"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(load(ROOT / "params.yaml"))


def student_rows(plan: Plan) -> dict[str, VariantPlan]:
    return {name: v for name, v in plan.variants.items() if v.students}


def images(variant: VariantPlan, kind: str) -> list[int]:
    """Images of each student's stage, as its job will be told."""
    return [node.settings["recipe"]["images"] for s in variant.students for node in s.stages if node.kind == kind]


def all_images(variant: VariantPlan) -> int:
    """Images of dm and adm, of all students together."""
    return sum(images(variant, "dm")) + sum(images(variant, "adm"))


def without_images(node: Node) -> dict[str, Any]:
    """What a stage is told, apart from its length, its part and its network."""
    return {"kind": node.kind, "seed": node.settings["seed"], "recipe": {**node.settings["recipe"], "images": None}}


def test_the_rows_are_the_asked_ones(plan: Plan) -> None:
    assert list(plan.variants) == [
        "teacher",
        "single",
        "msd4",
        "single-matched-compute",
        "msd4-equal-total",
        "msd4-small",
        "single-small",
    ]
    assert isinstance(plan.experiment.variants["teacher"], TeacherVariant)


def test_rows_differ_only_in_the_four_fields(plan: Plan) -> None:
    default = StudentVariant(students=1)
    for name, variant in plan.experiment.variants.items():
        if isinstance(variant, StudentVariant):
            differing = {f for f in type(variant).model_fields if getattr(variant, f) != getattr(default, f)}
            assert differing <= MAY_DIFFER, name


def test_one_recipe_for_every_student_of_every_row(plan: Plan) -> None:
    chains = [
        [without_images(node) for node in student.stages if node.kind != "tsm"]
        for variant in student_rows(plan).values()
        for student in variant.students
    ]
    assert [stage["kind"] for stage in chains[0]] == ["dm", "adm"]
    assert all(chain == chains[0] for chain in chains)


def test_one_measurement_for_every_row(plan: Plan) -> None:
    measured = [
        (v.evaluation.settings, {role: path for role, path in v.evaluation.input_paths.items() if role != "bundle"})
        for v in plan.variants.values()
    ]
    assert all(m == measured[0] for m in measured)
    assert plan.floor.settings["protocol"] == measured[0][0]["protocol"]


@pytest.mark.parametrize(("one", "other"), [("single", "msd4"), ("single-small", "msd4-small")])
def test_the_same_images_per_student(plan: Plan, one: str, other: str) -> None:
    for stage in ("dm", "adm"):
        assert len(set(images(plan.variant(one), stage) + images(plan.variant(other), stage))) == 1
    assert len(plan.variant(one).students) == 1
    assert len(plan.variant(other).students) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [("single-matched-compute", "msd4"), ("msd4-equal-total", "single")],
)
def test_the_same_images_in_total(plan: Plan, one: str, other: str) -> None:
    for stage in ("dm", "adm"):
        assert sum(images(plan.variant(one), stage)) == sum(images(plan.variant(other), stage)) > 0
    assert all_images(plan.variant(one)) == all_images(plan.variant(other))


def test_students_of_a_row_start_from_the_same_weights(plan: Plan) -> None:
    for name in ("msd4", "msd4-small"):
        starts = {tuple(sorted(s.stages[0].input_paths.items())) for s in plan.variant(name).students}
        assert len(starts) == 1


def test_a_small_network_passes_through_tsm_once(plan: Plan) -> None:
    small = [s for name in ("msd4-small", "single-small") for s in plan.variant(name).students]
    assert {s.stages[0].kind for s in small} == {"tsm"}
    assert len({s.stages[0].manifest for s in small}) == 1
    assert sum(node.kind == "tsm" for node in plan) == 1
    assert not any(node.kind == "tsm" for s in plan.variant("msd4").students for node in s.stages)


def test_rows_that_need_the_same_student_share_it(plan: Plan) -> None:
    twice = plan.experiment.model_copy(
        update={"variants": {**plan.experiment.variants, "again": plan.experiment.variants["msd4"]}}
    )
    more = {node.manifest: node.kind for node in Plan(twice)}
    assert sorted(more[path] for path in more.keys() - {node.manifest for node in plan}) == [
        "breakdown",
        "bundle",
        "evaluate",
        "latency",  # of one more bundle
    ]
