"""MLflow's own server on loopback, stopped by its process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MLFLOW = Path(sys.executable).parent / "mlflow"
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
PATIENCE = 120  # seconds; a start takes half a minute on a slow machine


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A running server.

    Attributes:
        url: of the server.
    """

    def __init__(self, folder: Path, port: int, environment: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=folder,
            env={**environment, **QUIET},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except OSError:
                assert self._process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)

    def stop(self, number: int = 15) -> None:
        """By a signal to it and its workers."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
            self._process.wait(timeout=30)


@contextmanager
def serving(folder: Path, port: int | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[Server]:
    """A server on the ``mlflow.db`` of a folder, as plain `mlflow ui` there would be."""
    server = Server(folder, port or free_port(), environment)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
