"""Bring the runs of an experiment to MLflow: a parent run per variant, child runs per student and stage.

The files are the truth and MLflow is a view of them, so training depends on no tracking server. One process writes,
after the fact. Runs are found again by a tag and are told only what they do not know yet: twice is as once.
Nothing else in the package imports mlflow. What there is to tell is in ``runs``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from msd import store
from msd.errors import TrackingError
from msd.plan import Plan
from msd.runs import Row, rows_of
from msd.store import Manifest

# mlflow reads these when it is imported, or at its first request
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default waits for minutes before it gives up

import mlflow.db
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

KEY, ARTIFACTS = "msd.key", "msd.artifacts"
# limits of MLflow's API
METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_LENGTH, RUNS_PER_SEARCH = 1000, 100, 6000, 10_000
SQLITE = "sqlite:///"


def track(plan: Plan, uri: str | None = None) -> Manifest:
    """Bring MLflow up to date with the results of an experiment, then write ``plan.tracking``.

    Args:
        plan: of an experiment whose evaluations and latency are there.
        uri: MLflow's tracking URI; default: $MLFLOW_TRACKING_URI, else ``mlflow.db`` in the current folder, which
            is where a plain ``mlflow ui`` looks.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
        MissingFileError, DamagedFileError: a manifest is missing or broken.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        uri = SQLITE + os.path.abspath(uri.removeprefix(SQLITE))
    rows = {name: rows_of(plan, variant) for name, variant in plan.variants.items()}
    with _explained(uri), _opened(plan, uri) as (client, experiment_id):
        runs = {name: _project(client, experiment_id, some) for name, some in rows.items()}
    inputs = {name: variant.evaluation.manifest for name, variant in plan.variants.items()}
    return Manifest.write(
        plan.tracking,
        kind="tracking",
        settings={"uri": _without_password(uri)},
        inputs={**inputs, "latency": plan.latency.manifest},
        results={"experiment_id": experiment_id, "runs": runs},
    )


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """One clear error for whatever MLflow and its database raise; ImportError is a missing database driver's."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError) as e:
        raise TrackingError(
            "MLflow cannot be told about the runs.",
            where=_without_password(uri),
            why=str(e).strip().splitlines()[0],
            todo="Check the address and its rights, then give the same command again: it goes on where it stopped.",
        ) from e


@contextlib.contextmanager
def _opened(plan: Plan, uri: str) -> Iterator[tuple[MlflowClient, str]]:
    """The client and the experiment's id, both made where needed, held by one writer on this machine."""
    database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    artifacts = database.parent / "mlruns" if database else None
    with store.one_writer(artifacts or plan.root / "state" / "tracking"):
        if database:
            _prepare(database, uri)
        client, name = MlflowClient(tracking_uri=uri), plan.experiment.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            yield client, experiment.experiment_id
        else:
            # absolute, since a relative location would follow the folder in which `mlflow ui` is started
            location = (artifacts / name).as_uri() if artifacts else None
            yield client, client.create_experiment(name, artifact_location=location)


def _prepare(database: Path, uri: str) -> None:
    """Create or upgrade the tables before anything uses them."""
    # asked first, because MLflow retries a database that cannot be opened for minutes
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
    for name in ("alembic", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.db.upgrade.main([uri], standalone_mode=False)


def _project(client: MlflowClient, experiment_id: str, rows: list[Row]) -> dict[str, str]:
    """Tell MLflow what it does not know of a variant, the parent first. Returns the runs' names → ids."""
    query = f"tags.`{KEY}` LIKE '{rows[0].key}%'"
    known = {run.data.tags[KEY]: run for run in client.search_runs([experiment_id], query, max_results=RUNS_PER_SEARCH)}
    ids: dict[str, str] = {}
    for row in rows:
        run = known.get(row.key)
        if run is None:
            tags = {KEY: row.key, **{name: value for name, value in row.tags.items() if value}}
            if ids:
                tags["mlflow.parentRunId"] = next(iter(ids.values()))
            run = client.create_run(experiment_id, round(1000 * row.start), tags, row.name)
        _complete(client, run, row)
        ids[row.name] = run.info.run_id
    return ids


def _complete(client: MlflowClient, run: Run, row: Row) -> None:
    """Log what differs from what is there. The status comes last, so that a killed call is gone on with."""
    run_id, finished, now = run.info.run_id, run.info.status == "FINISHED", round(1000 * time.time())
    params = [Param(name, str(v)[:PARAM_LENGTH]) for name, v in row.params.items() if name not in run.data.params]
    metrics = [
        Metric(name, value, now, 0)
        for name, value in row.metrics.items()
        if value is not None and run.data.metrics.get(name) != value
    ]
    if not finished:
        metrics += _missing_points(client, run, row)
    for i in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[i : i + PARAMS_PER_CALL])
    for i in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[i : i + METRICS_PER_CALL])
    _log_artifacts(client, run, row)
    if not finished:
        client.set_terminated(run_id, "FINISHED", round(1000 * row.end))


def _missing_points(client: MlflowClient, run: Run, row: Row) -> list[Metric]:
    """The points of the curves, less those that an interrupted call got to."""
    names = {name for point in row.curves.values() for name in point} & run.data.metrics.keys()
    there = {(m.key, m.step) for name in names for m in client.get_metric_history(run.info.run_id, name)}
    return [
        Metric(name, value, round(1000 * row.times.get(nimg, row.end)), nimg)
        for nimg, point in row.curves.items()
        for name, value in point.items()
        if value is not None and (name, nimg) not in there
    ]


def _log_artifacts(client: MlflowClient, run: Run, row: Row) -> None:
    """Upload what is new or has changed; a tag remembers the sha256 of what was uploaded."""
    before = json.loads(run.data.tags.get(ARTIFACTS, "{}"))
    after = {
        name: store.sha256_file(a) if isinstance(a, Path) else store.digest(a) for name, a in row.artifacts.items()
    }
    for name, source in row.artifacts.items():
        if after[name] == before.get(name):
            continue
        if isinstance(source, Path):
            client.log_artifact(run.info.run_id, str(source))
        else:
            client.log_text(run.info.run_id, source, name)
    if before != after:
        client.log_batch(run.info.run_id, tags=[RunTag(ARTIFACTS, store.canonical_json(after))])
