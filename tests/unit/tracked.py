"""What the tests of tracking share: what MLflow holds, and training as it looks from outside while it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from report_fixtures import experiment, make_results

from msd.plan import Node, Plan
from msd.store import Manifest, write_json, write_text
from msd.tracking.projection import PARENT
from msd.training import lease
from msd.training.journal import Journal

VARIANTS: dict[str, dict[str, Any]] = {
    "teacher": {"model": "teacher"},
    "single": {"students": 1},
    "two-small": {"students": 2, "network": "small", "stages": ["dm"]},
}


def results(name: str = "tiny", variants: dict[str, dict[str, Any]] = VARIANTS, classes: int = 10) -> Plan:
    """A finished experiment in the current folder, with what a report leaves."""
    plan = make_results(Path("results"), experiment(variants, name), classes)
    for file in ("ablation.csv", "figures/overview.png", *(f"figures/gallery-{name}.png" for name in variants)):
        write_text(plan.root / file, "made by the report\n")
    write_report(plan)
    return plan


def write_report(plan: Plan) -> None:
    """The report's manifest, as if it had been made from what is there."""
    Manifest.write(plan.report, kind="report", settings={}, inputs={str(path): path for path in plan.report_inputs})


def make_client(uri: str | None = None) -> Any:
    """To the database in the current folder, or to another place."""
    from mlflow import MlflowClient

    return MlflowClient(uri or f"sqlite:///{Path.cwd()}/mlflow.db")


def all_runs(client: Any, experiment: str = "tiny") -> list[Any]:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=10_000)


def runs_by_name(client: Any, experiment: str = "tiny") -> dict[str, Any]:
    """Of an experiment that was tracked with one configuration."""
    found = all_runs(client, experiment)
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found), "a run is there twice"
    return runs


def parents(client: Any) -> dict[str, Any]:
    return {name: run for name, run in runs_by_name(client).items() if PARENT not in run.data.tags}


def histories(client: Any, experiment: str = "tiny") -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(name of the run, metric) → its points in order."""
    return {
        (name, metric): sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))
        for name, run in runs_by_name(client, experiment).items()
        for metric in run.data.metrics
    }


def unfinish(plan: Plan) -> None:
    """Put the manifests from the training on aside, so that the experiment looks as if it had not begun."""
    later = {node.manifest for node in plan if node.group in ("train", "bundles", "evaluation")}
    for path in [*later, plan.report]:
        path.rename(_aside(path))


def finish(plan: Plan) -> None:
    """Put back what ``unfinish`` took, but for the training."""
    for node in plan:
        if node.group in ("bundles", "evaluation") and _aside(node.manifest).exists():
            _aside(node.manifest).rename(node.manifest)
    write_report(plan)


def _aside(path: Path) -> Path:
    return path.with_suffix(".aside")


class Training:
    """The outside of a training job: lease, journal, failure and, in the end, the manifest."""

    def __init__(self, node: Node) -> None:
        self.node, self.folder = node, node.root / "state" / f"{node.kind}-{node.digest}00000000"
        self.failure = node.root / "state" / "failures" / f"{node.kind}-{node.digest}.json"
        self.holder: dict[str, Any] = lease._myself() | {"work": str(node.manifest)}

    @property
    def images(self) -> int:
        return self.node.settings["recipe"]["images"]

    def start(self, nimg: int = 0, job: str | None = None) -> None:
        self.failure.unlink(missing_ok=True)
        self.journal = Journal(self.folder)
        self._hold(slurm_job=job)
        self.journal.write("start", nimg=nimg, images=self.images, slurm_job_id=job)

    def progress(self, nimg: int, **metrics: float | None) -> None:
        speed = {"images_per_second": 90.5, "data_wait_seconds": 0.25, "memory_bytes": 1_000_000}
        self.journal.write("progress", nimg=nimg, seconds=nimg / 90, metrics=metrics, speed=speed)

    def stop(self) -> None:
        self.journal.write("interrupted", nimg=0, signal="SIGTERM")
        self._hold(released=True)

    def fail(self) -> None:
        told = {"error": "DivergedError", "what": "Training diverged.", "where": "", "why": "", "todo": ""}
        write_json(self.failure, told | {"exit_code": 8, "time": 0.0, "job": None, "manifest": str(self.node.manifest)})
        self._hold(released=True)

    def die(self) -> None:
        self._hold(process=[self.holder["process"][0], -1])

    def finish(self) -> None:
        self.journal.write("finish", nimg=self.images, seconds=1.0)
        self._hold(released=True)
        shutil.copy(self.folder / "events.jsonl", self.node.manifest.parent / "events.jsonl")
        _aside(self.node.manifest).rename(self.node.manifest)

    def _hold(self, **changed: Any) -> None:
        (self.folder / "lease-000001.json").write_text(json.dumps(self.holder | changed))
