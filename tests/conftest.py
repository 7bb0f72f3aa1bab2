"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large test inputs that do not belong in the repository."""
    folder = os.environ.get("MSD_TEST_DATA")
    if not folder:
        pytest.skip("needs MSD_TEST_DATA, a folder of reference pickles and image archives")
    return Path(folder)
