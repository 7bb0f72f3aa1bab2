"""The way to MLflow: its address, its tables, one writer at a time, and one clear error for all that may go wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow.db
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from msd import store
from msd.errors import TrackingError
from msd.plan import Plan

SQLITE = "sqlite:///"


class Connection:
    """To where the runs of an experiment go.

    Args:
        plan: of the experiment.
        uri: MLflow's tracking URI; default: $MLFLOW_TRACKING_URI, else ``mlflow.db`` in the current folder.

    Attributes:
        uri: as it is used; may hold a password.
    """

    def __init__(self, plan: Plan, uri: str | None) -> None:
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
        self.database = Path(os.path.abspath(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None
        self.uri = f"{SQLITE}{self.database}" if self.database else uri
        self.name = plan.experiment.experiment
        self.artifacts = self.database.parent / "mlruns" if self.database else None
        self.lock = self.artifacts or plan.root / "state" / "tracking"
        self.client: MlflowClient | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[MlflowClient]:
        """The client, made where needed, held by one writer on this machine.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        with self._explained(), store.one_writer(self.lock):
            if self.client is None:
                if self.database:
                    _prepare(self.database, self.uri)
                self.client = MlflowClient(tracking_uri=self.uri)
            yield self.client

    def experiment_id(self, client: MlflowClient) -> str:
        """Of the experiment, which is made where needed."""
        experiment = client.get_experiment_by_name(self.name)
        if experiment is not None:
            return experiment.experiment_id
        # absolute, since a relative location would follow the folder in which `mlflow ui` is started
        location = (self.artifacts / self.name).as_uri() if self.artifacts else None
        return client.create_experiment(self.name, artifact_location=location)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """One clear error for whatever MLflow and its database raise; ImportError is a missing driver's."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError) as e:
            raise TrackingError(
                "MLflow cannot be told about the runs.",
                where=without_password(self.uri),
                why=str(e).strip().splitlines()[0],
                todo="Check the address and its rights, then give the same command again: it goes on where it stopped.",
            ) from e


def without_password(uri: str) -> str:
    """An address that may be shown."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _prepare(database: Path, uri: str) -> None:
    """Create or upgrade the tables before anything uses them."""
    # asked first, because MLflow retries a database that cannot be opened for minutes
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
    for name in ("alembic", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.db.upgrade.main([uri], standalone_mode=False)
