"""One working copy of the repository for the tests of this folder; each uses an experiment of its own in it."""

from __future__ import annotations

import pytest
from working_copy import WorkingCopy


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> WorkingCopy:
    """The copy that the tests share. Data and networks are prepared for each experiment apart."""
    return WorkingCopy(tmp_path_factory.mktemp("workflow") / "copy")
