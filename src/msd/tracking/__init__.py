"""Bring the runs of an experiment to MLflow: a parent run per variant, child runs per student and stage.

The files are the truth and MLflow is a view of them, so training depends on no tracking server. One process writes,
at any time. Runs are found again by a tag and are told only what they do not know yet: twice is as once.
Nothing else in the package imports mlflow. What there is to tell is in ``runs``.
"""

from __future__ import annotations

import os

# mlflow reads these when it is imported, or at its first request
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default waits for minutes before it gives up

from msd.tracking.look import follow, track

__all__ = ["follow", "track"]
