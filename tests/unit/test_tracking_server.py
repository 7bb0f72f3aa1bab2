"""A real tracking server that is killed in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port, serving
from tracked import histories, make_client, results, runs_by_name

from msd.cli.main import main
from msd.plan import Plan
from msd.store import Manifest
from msd.tracking.connection import MlflowClient
from msd.training import journal

pytestmark = pytest.mark.slow


def test_a_server_killed_in_the_middle_is_one_error_and_the_same_call_goes_on(
    tracking_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = results(variants={"two": {"students": 2, "stages": ["dm"]}})
    port, calls = free_port(), []
    command = ["track", "--uri", f"http://127.0.0.1:{port}"]
    monkeypatch.setattr("msd.cli.products.plan_of", lambda _: plan)
    original = MlflowClient.log_batch

    with serving(tracking_folder, port) as server, monkeypatch.context() as patch:

        def interrupted(*arguments: Any, **values: Any) -> None:
            calls.append(arguments)
            if len(calls) == 8:
                server.stop(9)
            original(*arguments, **values)

        patch.setattr(MlflowClient, "log_batch", interrupted)
        assert main(command) == 9
    told = capsys.readouterr().err
    assert "TrackingError: MLflow cannot be told about the runs." in told
    assert "the same command again" in told
    assert "Traceback" not in told
    assert not plan.tracking.exists()
    assert set(status_of().values()) == {"RUNNING"}, "a part has arrived"
    before = histories(make_client())
    assert before

    with serving(tracking_folder, port):
        assert main(command) == 0
        assert main(command) == 0
    assert set(status_of().values()) == {"FINISHED"}
    check_curves(plan, before)


def status_of() -> dict[str, str]:
    return {name: run.info.status for name, run in runs_by_name(make_client()).items()}


def check_curves(plan: Plan, before: dict[tuple[str, str], list[tuple[int, float]]]) -> None:
    """All that was written has arrived once, and what had arrived before the kill is still there."""
    after = histories(make_client())
    assert all(set(points) <= set(after[key]) for key, points in before.items())
    for k in range(2):
        path = Manifest.read(plan.student_node("two", k, "dm").manifest).file("journal")
        expected = [(n, m["fake_score_loss"]) for n, m in journal.metrics(path).items()]
        assert after[f"two dm student-{k}", "fake_score_loss"] == expected
    assert len(make_client().search_model_versions("name='tiny-two'")) == 1
