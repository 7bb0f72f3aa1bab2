"""Rows → runs: what MLflow does not know yet of a variant and its stages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from msd import store
from msd.runs import Row
from msd.runs.row import BUNDLE, FINISHED, RUNNING, SCHEDULED

KEY, PARENT, ARTIFACTS = "msd.key", "mlflow.parentRunId", "msd.artifacts"
# limits of MLflow's API
METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_LENGTH, RUNS_PER_SEARCH = 1000, 100, 6000, 10_000


def project(client: MlflowClient, experiment_id: str, rows: list[Row]) -> dict[str, str]:
    """Tell MLflow what it does not know of a variant, the parent first. Returns the runs' names → ids."""
    parent, *stages = rows
    query = f"tags.`{KEY}` LIKE '{parent.key}%'"
    known = client.search_runs([experiment_id], query, max_results=RUNS_PER_SEARCH)
    top = _run_of(known, parent) or _create(client, experiment_id, parent, {})
    below = {run.data.tags[KEY]: run for run in known if run.data.tags.get(PARENT) == top.info.run_id}
    runs = [(top, parent)]
    for row in stages:
        runs.append((below.get(row.key) or _create(client, experiment_id, row, {PARENT: top.info.run_id}), row))
    for run, row in runs:
        _complete(client, run, row)
    for run, row in runs:
        _set_status(client, run, row)
    return {row.name: run.info.run_id for run, row in runs}


def _run_of(known: list[Run], row: Row) -> Run | None:
    """The run of a variant with these weights, else one whose weights are not known yet."""
    runs = {run.data.tags.get(BUNDLE): run for run in reversed(known) if run.data.tags[KEY] == row.key}
    return runs.get(row.tags[BUNDLE]) or runs.get(None)


def _create(client: MlflowClient, experiment_id: str, row: Row, tags: dict[str, str]) -> Run:
    return client.create_run(experiment_id, round(1000 * row.start), {KEY: row.key, **tags}, row.name)


def _complete(client: MlflowClient, run: Run, row: Row) -> None:
    """Log what differs from what is there."""
    run_id, known, now = run.info.run_id, run.data, round(1000 * time.time())
    settings = {name: value for name, value in row.params.items() if value is not None and name not in known.params}
    params = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in settings.items()]
    tags = [RunTag(name, value) for name, value in row.tags.items() if value and known.tags.get(name) != value]
    metrics = [
        Metric(name, value, now, 0)
        for name, value in row.metrics.items()
        if value is not None and known.metrics.get(name) != value
    ]
    for i in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[i : i + PARAMS_PER_CALL])
    if tags or metrics:
        client.log_batch(run_id, tags=tags, metrics=metrics)
    for name in [name for name, value in row.tags.items() if value == "" and name in known.tags]:
        client.delete_tag(run_id, name)
    for batch in _batches(_missing_points(client, run, row)):
        client.log_batch(run_id, metrics=batch)
    _log_artifacts(client, run, row)


def _missing_points(client: MlflowClient, run: Run, row: Row) -> Iterator[list[Metric]]:
    """The points of the curves that are not there, in order, each as its metrics.

    A point arrives whole, since MLflow takes a call's metrics all or not at all. So ``nimg`` tells how far a run has
    come; only at its end is every point looked for, since a resumed stage may have measured at other places.
    """
    if run.info.status == FINISHED:
        return
    last, names = run.data.metrics.get("nimg", -1), {name for point in row.curves.values() for name in point}
    there: set[tuple[str, int]] = set()
    if row.status == FINISHED:
        for name in names & run.data.metrics.keys():
            there |= {(metric.key, metric.step) for metric in client.get_metric_history(run.info.run_id, name)}
    for nimg, point in row.curves.items():
        if row.status == FINISHED or nimg > last:
            when = round(1000 * row.times.get(nimg, row.end))
            yield [
                Metric(name, value, when, nimg)
                for name, value in point.items()
                if value is not None and (name, nimg) not in there
            ]


def _batches(points: Iterable[list[Metric]]) -> Iterator[list[Metric]]:
    """As many whole points as go into one call."""
    batch: list[Metric] = []
    for point in points:
        if len(batch) + len(point) > METRICS_PER_CALL:
            yield batch
            batch = []
        batch += point
    if batch:
        yield batch


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


def _set_status(client: MlflowClient, run: Run, row: Row) -> None:
    """Comes after everything else, so that a killed call is gone on with."""
    if run.info.status == row.status:
        return
    if row.status in (RUNNING, SCHEDULED):
        client.update_run(run.info.run_id, row.status)
    else:
        client.set_terminated(run.info.run_id, row.status, round(1000 * row.end))
