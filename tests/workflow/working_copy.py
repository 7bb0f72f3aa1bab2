"""A copy of what a clone holds, in which tests run the real Snakemake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from msd.store import Manifest
from msd.training import journal

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "local", "slurm", "params.yaml", "experiments", "protocols", "resources")
COMMANDS = Path(sys.executable).parent
MICRO = "experiments/micro.yaml"


class WorkingCopy:
    """A folder with the workflow, the settings and the resources; results go there too.

    Args:
        folder: where; it must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in PARTS:
            source = ROOT / name
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name, follow_symlinks=False)

    def command(self, *arguments: str, configfile: str | None = MICRO, profile: str = "local") -> list[str]:
        """A call of snakemake."""
        overlay = ["--configfile", configfile] if configfile else []
        return [str(COMMANDS / "snakemake"), *arguments, "--profile", profile, *overlay]

    @staticmethod
    def environment() -> dict[str, str]:
        """This process's, with this environment's commands first and nothing that would change what Snakemake does."""
        kept = {
            k: v for k, v in os.environ.items() if k not in ("SNAKEMAKE_PROFILE", "MLFLOW_TRACKING_URI", "PYTHONPATH")
        }
        return kept | {"PATH": f"{COMMANDS}:{os.environ['PATH']}"}

    def run(self, *arguments: str, fails: bool = False, **named: Any) -> str:
        """Run snakemake to its end; what it printed."""
        done = subprocess.run(
            self.command(*arguments, **named), cwd=self.folder, env=self.environment(), capture_output=True, text=True
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        return output

    def start(self, *arguments: str, **named: Any) -> subprocess.Popen[str]:
        """Start snakemake as the leader of its own process group."""
        return subprocess.Popen(
            self.command(*arguments, **named),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def overlay(self, name: str, content: dict[str, Any]) -> str:
        """Write experiments/<name>.yaml, micro's settings changed by ``content``; its path in the copy."""
        path = self.folder / "experiments" / f"{name}.yaml"
        base = yaml.safe_load((self.folder / MICRO).read_text())
        path.write_text(yaml.safe_dump(base | {"experiment": name} | content))
        return str(path.relative_to(self.folder))

    def results(self, experiment: str) -> Path:
        return self.folder / "results" / experiment

    def starts(self, experiment: str) -> dict[Path, list[int]]:
        """State folder → the images at which each of its attempts began: all training that ever took place."""
        return {
            path.parent: [e["nimg"] for e in journal.read(path) if e["event"] == "start"]
            for path in self.results(experiment).glob("state/*/events.jsonl")
        }

    def students(self, experiment: str) -> dict[str, str]:
        """Name of the folder → sha256 of the student's weights. The name is the same in every experiment."""
        return {path.parent.name: Manifest.read(path).sha256("student") for path in self._trained(experiment)}

    def parts(self, experiment: str) -> set[str]:
        """The parts for which there is a student."""
        return {str(Manifest.read(path).results["part"]) for path in self._trained(experiment)}

    def _trained(self, experiment: str) -> list[Path]:
        return list(self.results(experiment).glob("train/*/manifest.json"))


def trained_between(before: dict[Path, list[int]], after: dict[Path, list[int]]) -> list[Path]:
    """State folders in which something was trained meanwhile."""
    return sorted(folder for folder, starts in after.items() if starts != before.get(folder))


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End what a failed test may have left running."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
