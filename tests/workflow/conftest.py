"""One working copy of the repository for the tests of this folder, and one repository for those of DVC."""

from __future__ import annotations

import pytest
from dvc_repository import Repository
from working_copy import WorkingCopy


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> WorkingCopy:
    """The copy that the tests share; each uses an experiment of its own in it.

    Data and networks are prepared for each experiment apart.
    """
    return WorkingCopy(tmp_path_factory.mktemp("workflow") / "copy")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with a miniature run, made by Snakemake and then recorded by DVC. Tests change copies of it only."""
    repository = Repository.make(tmp_path_factory.mktemp("dvc") / "repository")
    repository.snakemake("all")
    repository.run("dvc", "commit", "--force")
    repository.commit("recorded")
    return repository
