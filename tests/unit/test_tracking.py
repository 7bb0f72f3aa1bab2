"""``msd track``: twice is as once, and MLflow holds what the manifests and journals say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import DM_IMAGES, experiment, make_results, rewrite

from msd import tracking
from msd.errors import MissingFileError, TrackingError
from msd.plan import Node, Plan
from msd.store import Manifest, write_json, write_text
from msd.training import journal

mlflow = tracking.mlflow  # imported there, with its telemetry off

VARIANTS: dict[str, dict[str, Any]] = {
    "teacher": {"model": "teacher"},
    "single": {"students": 1},
    "two-small": {"students": 2, "network": "small", "stages": ["dm"]},
}
# dm and adm of `single`; the shared tsm and two dm of `two-small`
CHILDREN = {"teacher": 0, "single": 2, "two-small": 3}
RUNS = len(CHILDREN) + sum(CHILDREN.values())


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database without runs: its 60 migrations are run once for all tests."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: bytes) -> Plan:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    plan = make_results(Path("results"), experiment(VARIANTS, "tiny"))
    for name in ("ablation.csv", "figures/overview.png", *(f"figures/gallery-{name}.png" for name in VARIANTS)):
        write_text(plan.root / name, "made by the report\n")
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
    return mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")


def runs_by_key(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("tiny")
    return {run.data.tags[tracking.KEY]: run for run in client.search_runs([experiment.experiment_id])}


def parents(client: Any) -> dict[str, Any]:
    return {r.info.run_name: r for r in runs_by_key(client).values() if "mlflow.parentRunId" not in r.data.tags}


def histories(client: Any) -> dict[tuple[str, str], list[tuple[int, float]]]:
    return {
        (key, name): [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for key, run in runs_by_key(client).items()
        for name in run.data.metrics
    }


def test_a_run_per_variant_and_a_child_per_stage_of_each_student(plan: Plan, client: Any) -> None:
    manifest = tracking.track(plan)
    runs = runs_by_key(client)
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
    tracking.track(plan)
    assert mlflow.get_tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    assert len(mlflow.search_runs(search_all_experiments=True)) == RUNS


def test_settings_are_searchable_under_the_keys_of_params_yaml(plan: Plan, client: Any) -> None:
    tracking.track(plan)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = client.search_runs([experiment], "params.students = '2' and params.`partition.kind` = 'consecutive'")
    assert [run.info.run_name for run in found] == ["two-small"]
    params = found[0].data.params
    assert params["recipe.dm.student.learning_rate"] == "0.0001"
    assert params["networks.small.model_channels"] == "8"
    assert not any(name.startswith("recipe.adm") for name in params), "this variant has no adm stage"
    child = client.search_runs([experiment], "tags.`msd.stage` = 'dm' and params.part = '1'")
    assert [run.data.params["classes"] for run in child] == ["[1]"]


def test_final_numbers_tags_and_artifacts(plan: Plan, client: Any) -> None:
    tracking.track(plan)
    parent = parents(client)["two-small"]
    metrics, tags = parent.data.metrics, parent.data.tags
    results = Manifest.read(plan.variant("two-small").evaluation.manifest).results
    assert {name: metrics[name] for name in results["metrics"]} == results["metrics"]
    assert metrics["latency_p50_ms"] == Manifest.read(plan.latency.manifest).results["variants"]["two-small"]["p50_ms"]
    assert metrics["asked_class_share_of/1"] == results["asked_class_share_per_class"][1]
    assert tags["metric.features_sha256"] == results["metric"]["features_sha256"]
    assert tags["teacher.sha256"] == Manifest.read(plan.teacher.manifest).sha256("weights")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"params.yaml", "partition.json", "ablation.csv", "overview.png", "gallery-two-small.png"}
    child = next(run for key, run in runs_by_key(client).items() if "/single/" in key and "/dm/" in key)
    manifest = Manifest.read(plan.student_node("single", 0, "dm").manifest)
    assert child.data.tags["weights.sha256"] == manifest.sha256("student")
    assert child.data.tags["slurm.job_ids"] == "70,71"
    assert child.data.metrics["nimg"] == DM_IMAGES


def test_curves_hold_each_point_of_the_journal_once(plan: Plan, client: Any) -> None:
    tracking.track(plan)
    path = Manifest.read(plan.student_node("single", 0, "dm").manifest).file("journal", verify=False)
    written = [event["nimg"] for event in journal.read(path) if event["event"] == "progress"]
    expected = journal.metrics(path)
    assert len(written) == len(expected) + 1, "the journal has a replayed point"
    curves = {name: points for (key, name), points in histories(client).items() if "/single/" in key and "/dm/" in key}
    for name in next(iter(expected.values())):
        points = {nimg: values[name] for nimg, values in expected.items() if values[name] is not None}
        assert sorted(curves[name]) == list(points.items())
    assert len(curves["dm_loss"]) == len(expected) - 1, "a null is no point"


def test_twice_is_as_once(plan: Plan, client: Any) -> None:
    first = tracking.track(plan)
    before, runs = histories(client), runs_by_key(client)
    second = tracking.track(plan)
    assert second.results == first.results
    assert histories(client) == before
    for key, run in runs_by_key(client).items():
        assert run.to_dictionary() == runs[key].to_dictionary()


def test_an_interrupted_call_is_gone_on_with(plan: Plan, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def killed(*arguments: Any, **values: Any) -> None:
        calls.append(arguments)
        if len(calls) == 25:
            raise KeyboardInterrupt
        original(*arguments, **values)

    original = mlflow.MlflowClient.log_batch
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "METRICS_PER_CALL", 30)
        patch.setattr(mlflow.MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.track(plan)
    assert "RUNNING" in {run.info.status for run in runs_by_key(client).values()}
    assert not plan.tracking.exists()
    tracking.track(plan)
    after = histories(client)
    assert {run.info.status for run in runs_by_key(client).values()} == {"FINISHED"}
    assert all(len(points) == len({step for step, _ in points}) for points in after.values())
    assert {len(points) for (_, name), points in after.items() if name == "fake_score_loss"} == {50, 100}, "adm, dm"


def test_changed_settings_give_a_new_run_and_keep_the_old_one(plan: Plan, client: Any) -> None:
    tracking.track(plan)
    before = runs_by_key(client)
    changed = plan.experiment.model_copy(update={"seed": 1})
    tracking.track(make_results(Path("results"), changed))
    after = runs_by_key(client)
    assert len(after) == 2 * RUNS
    assert all(after[key].to_dictionary() == run.to_dictionary() for key, run in before.items())


def test_new_weights_under_the_same_settings_give_a_new_run(plan: Plan, client: Any) -> None:
    """Another version of the code may make other weights."""
    tracking.track(plan)
    body = Manifest.read(plan.student_node("two-small", 1, "dm").manifest).body
    body["files"]["student"]["sha256"] = "0" * 64
    write_json(plan.student_node("two-small", 1, "dm").manifest, body)
    tracking.track(plan)
    assert len(runs_by_key(client)) == RUNS + 1 + CHILDREN["two-small"]


def test_a_new_report_and_a_new_latency_reach_the_old_run(plan: Plan, client: Any) -> None:
    tracking.track(plan)
    write_text(plan.root / "ablation.csv", "variant,fd_digits\nsingle,1\n")
    times = Manifest.read(plan.latency.manifest).results["variants"]
    rewrite(plan.latency, variants=times | {"single": {"p50_ms": 3.25, "p95_ms": 4.0, "repeats": 50}})
    tracking.track(plan)
    run = parents(client)["single"]
    assert len(runs_by_key(client)) == RUNS
    assert run.data.metrics["latency_p50_ms"] == 3.25
    path = client.download_artifacts(run.info.run_id, "ablation.csv")
    assert Path(path).read_text().endswith("single,1\n")


def test_without_its_journal_a_stage_has_its_last_point(plan: Plan, client: Any) -> None:
    """Journals stay where the training was: after `dvc pull` they are not there."""
    for path in plan.root.glob("train/*/events.jsonl"):
        path.unlink()
    tracking.track(plan)
    dm = Manifest.read(plan.student_node("single", 0, "dm").manifest)
    curves = {name: points for (key, name), points in histories(client).items() if "/single/" in key and "/dm/" in key}
    assert curves["dm_loss"] == [(DM_IMAGES, dm.results["metrics"]["dm_loss"])]


@pytest.mark.parametrize("uri", ["http://user:secret@127.0.0.1:9", "sqlite:///broken.db", "sqlite:////proc/mlflow.db"])
def test_an_unreachable_store_is_one_clear_error(plan: Plan, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("broken.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingError) as caught:
        tracking.track(plan, uri)
    assert caught.value.exit_code == 9
    assert "secret" not in caught.value.where
    assert not plan.tracking.exists()


def test_an_unfinished_experiment_is_refused_before_mlflow_is_touched(plan: Plan, client: Any) -> None:
    plan.latency.manifest.unlink()
    with pytest.raises(MissingFileError):
        tracking.track(plan)
    assert client.get_experiment_by_name("tiny") is None
