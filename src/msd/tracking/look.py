"""One look at an experiment, or looks until it is finished; each leaves MLflow up to date."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

from msd import store
from msd.plan import Plan
from msd.runs import Row, rows_of
from msd.standing import standing_of
from msd.store import Manifest
from msd.tracking.connection import Connection, without_password
from msd.tracking.models import register
from msd.tracking.projection import project


def track(plan: Plan, uri: str | None = None, tell: Callable[[str], None] = lambda line: None) -> Manifest | None:
    """Bring MLflow up to date with what there is of an experiment.

    Args:
        plan: of the experiment.
        uri: MLflow's tracking URI; default: $MLFLOW_TRACKING_URI, else ``mlflow.db`` in the current folder, which
            is where a plain ``mlflow ui`` looks.
        tell: is given a line on the runs.

    Returns:
        The manifest ``plan.tracking`` of a finished experiment, else None.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
        DamagedFileError: a manifest is broken.
    """
    return _look(plan, Connection(plan, uri), tell)


def follow(
    plan: Plan, uri: str | None = None, every: float = 10, tell: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Track every so many seconds until the experiment and its report are finished. The rest is as for ``track``."""
    connection, told = Connection(plan, uri), ""

    def tell_news(line: str) -> None:
        nonlocal told
        if line != told:
            tell(line)
        told = line

    while True:
        manifest = _look(plan, connection, tell_news)
        if manifest is not None and _reported(plan):
            return manifest
        time.sleep(every)


def _look(plan: Plan, connection: Connection, tell: Callable[[str], None]) -> Manifest | None:
    ids = {}
    with connection.opened() as client:  # first of all: another process may just tell of more
        standings = {standing.node.manifest: standing for standing in standing_of(plan)}
        rows = {name: rows_of(plan, variant, standings) for name, variant in plan.variants.items()}
        experiment_id = connection.experiment_id(client)
        for name, some in rows.items():
            if some:
                ids[name] = project(client, experiment_id, some)
                register(client, experiment_id, ids[name][name], f"{plan.experiment.experiment}-{name}", some[0])
    tell(_summary(rows))
    inputs = {name: variant.evaluation.manifest for name, variant in plan.variants.items()}
    inputs["latency"] = plan.latency.manifest
    if not all(some and some[0].bundle for some in rows.values()) or not plan.latency.manifest.exists():
        return None
    return Manifest.write(
        plan.tracking,
        kind="tracking",
        settings={"uri": without_password(connection.uri)},
        inputs=inputs,
        results={"experiment_id": experiment_id, "runs": ids},
    )


def _summary(rows: dict[str, list[Row]]) -> str:
    statuses = Counter(row.status for some in rows.values() for row in some)
    counts = ", ".join(f"{n} {status.lower()}" for status, n in sorted(statuses.items()))
    return f"{statuses.total()} runs{f': {counts}' if counts else ''}"


def _reported(plan: Plan) -> bool:
    """Whether the report is there, made from what is there now."""
    if not plan.report.exists():
        return False
    records = Manifest.read(plan.report).body["inputs"].values()
    recorded = {os.path.normpath(plan.root / record["path"]): record["sha256"] for record in records}
    return all(recorded.get(os.path.normpath(path)) == store.sha256_file(path) for path in plan.report_inputs)
