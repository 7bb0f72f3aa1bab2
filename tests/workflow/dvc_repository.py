"""A git and DVC repository of its own with the project in it, in which tests run the real commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from msd.config import load

ROOT = Path(__file__).resolve().parents[2]
TREE = (
    "Makefile",
    "Snakefile",
    "workflow",
    "local",
    "slurm",
    "experiments",
    "protocols",
    "resources",
    "src",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
)


class Repository:
    """A clone with experiments/micro.yaml as its params.yaml, so that DVC sees those settings.

    Args:
        folder: where it lies.
        environment: variables for its commands besides this process's, credentials of a remote for instance.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder, self.environment = folder, environment or {}

    @classmethod
    def make(cls, folder: Path) -> Repository:
        """One with a first commit and no results."""
        folder.mkdir()
        for name in TREE:
            source, target = ROOT / name, folder / name
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(source, target, follow_symlinks=False)
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
        miniature = load(ROOT / "params.yaml", [ROOT / "experiments/micro.yaml"])
        (folder / "params.yaml").write_text(yaml.safe_dump(miniature.model_dump(mode="json"), sort_keys=False))
        repository = cls(folder)
        repository.run("git", "init", "--quiet")
        repository.commit("settings")
        return repository

    def clone(self, folder: Path, environment: dict[str, str] | None = None) -> Repository:
        """What another person gets from git: no results and no local configuration."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Repository(folder, environment)

    def copy(self, folder: Path, environment: dict[str, str] | None = None) -> Repository:
        """The same once more, results and cache included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Repository(folder, environment)

    def run(self, *command: str, fails: bool = False) -> str:
        """A command of this environment in the folder; its output.

        Args:
            fails: whether it has to.
        """
        kept = {k: v for k, v in os.environ.items() if k not in ("SNAKEMAKE_PROFILE", "MLFLOW_TRACKING_URI")}
        environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            # DVC remembers what remotes hold by the repository's path, which a later run of the tests may use again
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc/tmp/site"),
            **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            **self.environment,
        }
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{command}\n{output}"
        return output

    def snakemake(self, *arguments: str) -> str:
        return self.run("snakemake", "--profile", "local", *arguments)

    def pull(self, fails: bool = False) -> str:
        """``make pull`` in the environment that there is."""
        return self.run("make", "--old-file=set-up", "pull", fails=fails)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def trained(self) -> dict[str, str]:
        """The journals of all training, which any further training would lengthen or add to."""
        return {
            str(p.relative_to(self.folder)): p.read_text() for p in self.folder.glob("results/*/state/*/events.jsonl")
        }

    def jobs(self) -> set[str]:
        """The rules that ``snakemake all`` would execute."""
        table = self.snakemake("all", "--dry-run", "--quiet", "rules")
        return set(re.findall(r"^(\w+) +\d+$", table, re.MULTILINE)) - {"total"}

    def changed(self) -> set[str]:
        """The stages that DVC takes for out of date."""
        return set(json.loads(self.run("dvc", "status", "--json")))

    def results(self) -> Path:
        return self.folder / "results/micro"
