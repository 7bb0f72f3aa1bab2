"""``msd track``: twice is as once, and MLflow holds what the manifests and journals say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import DM_IMAGES, make_results, rewrite
from tracked import all_runs, histories, make_client, parents, results, runs_by_name

from msd import store
from msd.errors import DamagedFileError, TrackingError
from msd.plan import Node, Plan
from msd.store import Manifest, read_json, write_json, write_text
from msd.tracking import projection, track
from msd.tracking.connection import MlflowClient
from msd.training import journal

# dm and adm of `single`; the shared tsm and two dm of `two-small`
CHILDREN = {"teacher": 0, "single": 2, "two-small": 3}
RUNS = len(CHILDREN) + sum(CHILDREN.values())
DM, TSM = "single dm student-0", "two-small tsm student-0,1"


@pytest.fixture
def plan(tracking_folder: Path) -> Plan:
    plan = results()
    replay_last_point(plan.student_node("single", 0, "dm"))
    return plan


def replay_last_point(node: Node) -> None:
    """What a resumed job leaves: a second start and the same point again, later."""
    path = Manifest.read(node.manifest).file("journal")
    last = [event for event in journal.read(path) if event["event"] == "progress"][-1]
    with open(path, "a", encoding="utf-8") as f:
        for time, job, event in ((300, 70, {"event": "start"}), (301, 71, {"event": "start"}), (302, 0, last)):
            f.write(json.dumps({**event, "time": time} | ({"slurm_job_id": str(job)} if job else {})) + "\n")


@pytest.fixture
def client(plan: Plan) -> Any:
    return make_client()


def test_a_run_per_variant_and_a_child_per_stage_of_each_student(plan: Plan, client: Any) -> None:
    manifest = track(plan)
    assert manifest is not None
    runs = runs_by_name(client)
    assert len(runs) == RUNS
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name, parent in parents(client).items():
        children = [r for r in runs.values() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(children) == CHILDREN[name]
        assert set(manifest.results["runs"][name].values()) == {r.info.run_id for r in (parent, *children)}
        assert all(run.info.end_time <= parent.info.end_time for run in children)
    assert plan.tracking == manifest.path


def test_plain_mlflow_ui_in_the_same_folder_sees_the_runs(plan: Plan) -> None:
    """Its store is the one that MLflow takes when it is told nothing."""
    track(plan)
    import mlflow

    assert mlflow.get_tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    assert len(mlflow.search_runs(search_all_experiments=True)) == RUNS


def test_settings_are_searchable_under_the_keys_of_params_yaml(plan: Plan, client: Any) -> None:
    track(plan)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = client.search_runs([experiment], "params.students = '2' and params.`partition.kind` = 'consecutive'")
    assert [run.info.run_name for run in found] == ["two-small"]
    params = found[0].data.params
    assert params["recipe.dm.student.learning_rate"] == "0.0001"
    assert params["networks.small.model_channels"] == "8"
    assert not any(name.startswith("recipe.adm") for name in params), "this variant has no adm stage"
    child = client.search_runs([experiment], "tags.`msd.stage` = 'dm' and params.part = '1'")
    assert [run.data.params["classes"] for run in child] == ["[5, 6, 7, 8, 9]"]


def test_final_numbers_tags_and_artifacts(plan: Plan, client: Any) -> None:
    track(plan)
    parent = parents(client)["two-small"]
    metrics, tags = parent.data.metrics, parent.data.tags
    results = Manifest.read(plan.variant("two-small").evaluation.manifest).results
    assert {name: metrics[name] for name in results["metrics"]} == results["metrics"]
    assert metrics["latency_p50_ms"] == Manifest.read(plan.latency.manifest).results["variants"]["two-small"]["p50_ms"]
    assert metrics["asked_class_share_of/1"] == results["asked_class_share_per_class"][1]
    assert tags["metric.features_sha256"] == results["metric"]["features_sha256"]
    assert tags["teacher.sha256"] == Manifest.read(plan.teacher.manifest).sha256("weights")
    assert tags["data.sha256"] == Manifest.read(plan.data.manifest).results["sha256"]
    code = Manifest.read(plan.variant("two-small").evaluation.manifest).body["code"]
    assert tags.get("mlflow.source.git.commit") == code["commit"]
    assert tags["device"] == "cpu"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    pictures = {"overview.png", "gallery-two-small.png"}
    assert files == {"params.yaml", "partition.json", "ablation.csv", "weights.json"} | pictures
    links = read_json(Path(client.download_artifacts(parent.info.run_id, "weights.json")))
    assert [link["sha256"] for link in links.values()] == [store.sha256_file(Path(p["path"])) for p in links.values()]
    assert list(links) == ["student-0", "student-1"]
    child = runs_by_name(client)[DM]
    manifest = Manifest.read(plan.student_node("single", 0, "dm").manifest)
    assert child.data.tags["weights.sha256"] == manifest.sha256("student")
    assert child.data.tags["slurm.job_ids"] == "70,71"
    assert child.data.metrics["nimg"] == DM_IMAGES


def test_curves_hold_each_point_of_the_journal_once(plan: Plan, client: Any) -> None:
    track(plan)
    path = Manifest.read(plan.student_node("single", 0, "dm").manifest).file("journal", verify=False)
    written = [event["nimg"] for event in journal.read(path) if event["event"] == "progress"]
    expected = journal.metrics(path)
    assert len(written) == len(expected) + 1, "the journal has a replayed point"
    curves = {name: points for (run, name), points in histories(client).items() if run == DM}
    for name in next(iter(expected.values())):
        points = {nimg: values[name] for nimg, values in expected.items() if values[name] is not None}
        assert sorted(curves[name]) == list(points.items())
    assert len(curves["dm_loss"]) == len(expected) - 1, "a null is no point"
    assert curves["system/images_per_second"] == [(nimg, 90.0) for nimg in expected]


def test_variants_have_the_mean_curve_of_their_students(plan: Plan, client: Any) -> None:
    track(plan)
    found = histories(client)
    each = [dict(found[f"two-small dm student-{k}", "dm_loss"]) for k in (0, 1)]
    expected = [(nimg, (each[0][nimg] + each[1][nimg]) / 2) for nimg in sorted(each[0])]
    assert found["two-small", "dm/dm_loss"] == [(nimg, pytest.approx(value)) for nimg, value in expected]
    assert len(expected) > 50
    assert [nimg for nimg, _ in found["two-small", "tsm/loss"]] == [n for n, _ in found[TSM, "loss"]]


def test_the_state_of_dvc_is_named_where_it_records_the_experiment(plan: Plan, client: Any) -> None:
    write_text(Path("dvc.lock"), "outs: [results/another/train]\n")
    track(plan)
    assert "dvc.lock.sha256" not in parents(client)["single"].data.tags
    write_text(Path("dvc.lock"), f"outs: [{plan.root}/train]\n")
    track(plan)
    assert parents(client)["single"].data.tags["dvc.lock.sha256"] == store.sha256_file(Path("dvc.lock"))


def test_twice_is_as_once(plan: Plan, client: Any) -> None:
    first = track(plan)
    before, runs = histories(client), runs_by_name(client)
    second = track(plan)
    assert first is not None
    assert second is not None
    assert second.results == first.results
    assert histories(client) == before
    for name, run in runs_by_name(client).items():
        assert run.to_dictionary() == runs[name].to_dictionary()


def test_an_interrupted_call_is_gone_on_with(plan: Plan, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def killed(*arguments: Any, **values: Any) -> None:
        calls.append(arguments)
        if len(calls) == 25:
            raise KeyboardInterrupt
        original(*arguments, **values)

    original = MlflowClient.log_batch
    with monkeypatch.context() as patch:
        patch.setattr(projection, "METRICS_PER_CALL", 30)
        patch.setattr(MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            track(plan)
    assert "RUNNING" in {run.info.status for run in all_runs(client)}
    assert not plan.tracking.exists()
    track(plan)
    after = histories(client)
    assert {run.info.status for run in all_runs(client)} == {"FINISHED"}
    assert all(len(points) == len({step for step, _ in points}) for points in after.values())
    assert {len(points) for (_, name), points in after.items() if name == "fake_score_loss"} == {50, 100}, "adm, dm"


def test_changed_settings_give_a_new_run_and_keep_the_old_one(plan: Plan, client: Any) -> None:
    track(plan)
    before = runs_by_name(client)
    changed = plan.experiment.model_copy(update={"seed": 1})
    track(make_results(Path("results"), changed))
    after = {run.info.run_id: run for run in all_runs(client)}
    assert len(after) == 2 * RUNS
    assert all(after[run.info.run_id].to_dictionary() == run.to_dictionary() for run in before.values())


def test_new_weights_under_the_same_settings_give_a_new_run(plan: Plan, client: Any) -> None:
    """Another version of the code may make other weights."""
    track(plan)
    bundle = plan.variant("two-small").bundle.manifest
    write_text(bundle.parent / "student-1.safetensors", "other weights")
    body = Manifest.read(bundle).body
    body["files"]["student-1"] |= store.file_record(bundle.parent / "student-1.safetensors", bundle.parent)
    write_json(bundle, body)
    track(plan)
    assert len(all_runs(client)) == RUNS + 1 + CHILDREN["two-small"]


def test_a_new_report_and_a_new_latency_reach_the_old_run(plan: Plan, client: Any) -> None:
    track(plan)
    write_text(plan.root / "ablation.csv", "variant,fd_digits\nsingle,1\n")
    times = Manifest.read(plan.latency.manifest).results["variants"]
    rewrite(plan.latency, variants=times | {"single": {"p50_ms": 3.25, "p95_ms": 4.0, "repeats": 50}})
    track(plan)
    run = parents(client)["single"]
    assert len(all_runs(client)) == RUNS
    assert run.data.metrics["latency_p50_ms"] == 3.25
    path = client.download_artifacts(run.info.run_id, "ablation.csv")
    assert Path(path).read_text().endswith("single,1\n")


def test_without_its_journal_a_stage_has_its_last_point(plan: Plan, client: Any) -> None:
    """Journals stay where the training was: after `dvc pull` they are not there."""
    for path in plan.root.glob("train/*/events.jsonl"):
        path.unlink()
    track(plan)
    dm = Manifest.read(plan.student_node("single", 0, "dm").manifest)
    curves = {name: points for (run, name), points in histories(client).items() if run == DM}
    assert curves["dm_loss"] == [(DM_IMAGES, dm.results["metrics"]["dm_loss"])]


@pytest.mark.parametrize("uri", ["http://user:secret@127.0.0.1:9", "sqlite:///broken.db", "sqlite:////proc/mlflow.db"])
def test_an_unreachable_store_is_one_clear_error(plan: Plan, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("broken.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingError) as caught:
        track(plan, uri)
    assert caught.value.exit_code == 9
    assert "secret" not in caught.value.where
    assert not plan.tracking.exists()


def test_a_broken_manifest_is_told_before_mlflow_is_touched(plan: Plan, client: Any) -> None:
    write_text(plan.variant("single").evaluation.manifest, "no manifest")
    with pytest.raises(DamagedFileError):
        track(plan)
    assert client.get_experiment_by_name("tiny") is None
