"""The static DAG: a path changes exactly when a setting that matters does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ROOT

from msd.config import load
from msd.errors import ConfigError
from msd.plan import Plan

PARAMS = ROOT / "params.yaml"


def plan(*settings: str) -> Plan:
    return Plan(load(PARAMS, (), settings))


def paths(plan: Plan) -> dict[str, Path]:
    """Label → manifest. Labels are unique here, since no two rows share a student."""
    found = {node.label: node.manifest for node in plan}
    assert len(found) == len(list(plan))
    return found


def changed_kinds(setting: str) -> set[str]:
    """Kinds of nodes whose paths a setting changes."""
    before, after = paths(plan()), paths(plan(setting))
    kinds = {node.label: node.kind for node in plan()}
    return {kinds[label] for label, path in before.items() if after[label] != path}


TRAINING = {"dm", "adm", "bundle", "evaluate", "breakdown", "latency"}
ALL = {"data", "teacher", "classifier", "partition", "pairs", "tsm", "floor", "toy", *TRAINING}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("compute={threads: 7, device: cpu, log_every_updates: 3, checkpoint_every_updates: 9}", set()),
        ("evaluation.latency_repeats=7", {"latency"}),
        ("evaluation.throughput_batch=7", {"latency"}),
        ("evaluation.breakdown.images=500", {"breakdown"}),
        ("evaluation.breakdown.nearest=7", {"breakdown"}),
        ("evaluation.gallery_columns=5", {"evaluate"}),
        ("evaluation.protocol.neighbours=5", {"evaluate", "breakdown", "floor"}),
        # the teacher's own row; tables compare by the whole protocol, so the floor is measured by it too
        ("evaluation.protocol.sampler.num_steps=5", {"bundle", "evaluate", "breakdown", "floor", "latency"}),
        ("evaluation.judge.sha256=" + "a" * 64, {"classifier", "evaluate", "breakdown", "floor"}),
        ("recipe.adm.generator_weight=1", {"adm", "bundle", "evaluate", "breakdown", "latency"}),
        ("recipe.dm.grid_range=[0, 999]", TRAINING),
        ("recipe={dm: {regression: {pairs: 1000}}, adm: {regression: {pairs: 1000}}}", {"pairs", *TRAINING}),
        ("recipe.dm.regression.weight=2", TRAINING),  # the pairs serve any weight
        ("recipe.tsm.images=128", {"tsm", *TRAINING}),
        ("teacher.sha256=" + "a" * 64, {"teacher", "pairs", "tsm", *TRAINING}),
        ("data.evaluation_share=0.4", {"data", "partition", "tsm", "floor", *TRAINING}),
        ("seed=1", {"pairs", "tsm", *TRAINING}),
        ("toy.width=5", {"toy"}),
        ("toy.map.widths=[5]", set()),
    ],
)
def test_a_setting_changes_the_paths_it_matters_for(setting: str, expected: set[str]) -> None:
    assert changed_kinds(setting) == expected


def test_every_kind_is_covered() -> None:
    assert {node.kind for node in plan()} == ALL


def test_a_setting_changed_back_gives_the_old_paths() -> None:
    images = load(PARAMS).recipe.dm.images
    assert paths(plan("recipe.dm.images=12800", f"recipe.dm.images={images}")) == paths(plan())


def test_one_rows_learning_rate_changes_that_rows_students_only() -> None:
    before = plan()
    after = plan("variants={one: {students: 1}, two: {students: 2, recipe: {dm: {student: {learning_rate: 0.5}}}}}")
    plain = plan("variants={one: {students: 1}, two: {students: 2}}")
    assert after.variant("one") == plain.variant("one")
    assert after.variant("one").students == before.variant("single").students
    for changed, same in zip(after.variant("two").students, plain.variant("two").students, strict=True):
        assert changed.stages[0].settings["recipe"]["student"]["learning_rate"] == 0.5
        assert {n.manifest for n in changed.stages}.isdisjoint(n.manifest for n in same.stages)
    others = {n.manifest for n in after if n.kind not in TRAINING}
    assert others == {n.manifest for n in plain if n.kind not in TRAINING}


def test_every_row_but_the_teachers_is_broken_down() -> None:
    made = plan()
    assert [name for name, v in made.variants.items() if v.breakdown is None] == ["teacher"]
    images = {v.breakdown.settings["images"] for v in made.variants.values() if v.breakdown}
    assert images == {made.experiment.evaluation.breakdown.images}
    as_many = plan("evaluation.breakdown.images=null").variant("msd4").breakdown
    assert as_many is not None
    assert as_many.settings["images"] == made.experiment.evaluation.protocol.images


def test_explicit_parts_are_part_of_the_path() -> None:
    row = "variants={{a: {{students: 2, partition: {{kind: explicit, parts: {}}}}}}}"
    one, other = (
        plan(row.format(parts)).variant("a") for parts in ("[[0,1,2,3,4],[5,6,7,8,9]]", "[[0,1,2,3,5],[4,6,7,8,9]]")
    )
    assert one.partition is not None
    assert other.partition is not None
    assert one.partition.settings["parts"] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert one.partition.manifest != other.partition.manifest
    assert one.partition.manifest.parent.name.startswith("explicit-2-")


def test_only_kmeans_reads_the_teacher() -> None:
    for kind, roles in (("kmeans", {"data", "teacher"}), ("random", {"data"}), ("consecutive", {"data"})):
        variant = plan(f"variants={{a: {{students: 2, partition: {{kind: {kind}}}}}}}").variant("a")
        assert variant.partition is not None
        assert set(variant.partition.inputs) == roles


def test_everything_lies_under_the_experiments_folder() -> None:
    for experiment in ("mnist", "other"):
        made = plan(f"experiment={experiment}")
        root = Path("results") / experiment
        for path in [*paths(made).values(), made.report, made.tracking]:
            assert root in path.parents
    assert {p.relative_to("results/mnist") for p in paths(plan()).values()} == {
        p.relative_to("results/other") for p in paths(plan("experiment=other")).values()
    }  # the name is no setting: only the folder differs


def test_adm_follows_dm_of_the_same_student() -> None:
    for student in plan().variant("msd4-small").students:
        assert [node.kind for node in student.stages] == ["tsm", "dm", "adm"]
        for before, after in zip(student.stages, student.stages[1:], strict=False):
            assert after.inputs["before"] is before


def test_find_names_the_node_or_says_what_to_do() -> None:
    made = plan()
    for node in made:
        assert made.find(str(node.manifest)) == node
    stranger = plan("recipe.dm.images=12800").student_node("single", 0, "dm").manifest
    with pytest.raises(ConfigError) as refused:
        made.find(stranger)
    assert refused.value.where == str(stranger)
    assert "--configfile" in refused.value.todo


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", 0, "dm"), "msd4-small"),
        (("msd4", 4, "dm"), "has no student 4"),
        (("msd4", 0, "tsm"), "no stage 'tsm'"),
    ],
)
def test_student_that_there_is_not(arguments: tuple[str, int, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan().student_node(*arguments)


def test_images_ahead_are_those_of_the_longest_chain() -> None:
    made = plan(
        "recipe={tsm: {images: 96}, dm: {images: 1280, regression: null}, adm: {images: 256, regression: null}}"
    )
    chain = made.variant("single").students[0].stages
    assert [made.images_ahead(node) for node in chain] == [1536, 256]
    assert made.images_ahead(made.variant("single").bundle) == 0
    # four times the images, and its partition waits behind nothing
    longest = made.variant("single-matched-compute")
    assert longest.partition is not None
    assert made.images_ahead(longest.partition) == made.images_ahead(made.data) == 4 * 1536
    small = made.variant("msd4-small").students[0].stages
    assert [made.images_ahead(node) for node in small] == [1632, 1536, 256]
