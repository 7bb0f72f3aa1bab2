"""DVC around the workflow: its stages fit the rules, and recording finished work trains nothing."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from msd.config import load

ROOT = Path(__file__).resolve().parents[2]
TREE = ("Snakefile", "workflow", "local", "slurm", "resources", "src", "dvc.yaml", ".dvcignore", ".gitignore")
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def outs(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Path → flags of everything that a stage makes."""
    entries = [e for kind in ("outs", "metrics", "plots") for e in stage.get(kind, [])]
    return dict(next(iter(e.items())) if isinstance(e, dict) else (e, {}) for e in entries)


@pytest.mark.parametrize("name", STAGES)
def test_outs_persist(name: str) -> None:
    """Without it `dvc repro` deletes them first, and Snakemake would begin anew."""
    made = outs(STAGES[name])
    assert [path for path, flags in made.items() if not flags.get("persist")] == []
    assert not any("state" in path or "variants" in path for path in made)


@pytest.mark.parametrize("name", STAGES)
def test_stages_ask_for_targets_of_the_workflow(name: str) -> None:
    rules = "\n".join(
        path.read_text() for path in [ROOT / "workflow/Snakefile", *(ROOT / "workflow").glob("rules/*.smk")]
    )
    targets = re.findall(r"snakemake --profile \S+ (\w+)", str(STAGES[name]["cmd"]))
    assert len(targets) == 1
    assert re.search(rf"^rule {targets[0]}:$", rules, re.MULTILINE)


@pytest.mark.parametrize("name", STAGES)
def test_dependencies_exist_or_are_made_by_an_earlier_stage(name: str) -> None:
    made: set[str] = set()
    for earlier in STAGES:
        if earlier == name:
            break
        made |= outs(STAGES[earlier]).keys()
    assert [dep for dep in STAGES[name]["deps"] if not (dep in made or (ROOT / dep).exists())] == []


def test_cached_files_stay_replaceable() -> None:
    """A link into the cache would be read-only."""
    config = configparser.ConfigParser()
    config.read_string("\n".join(line.strip() for line in (ROOT / ".dvc/config").read_text().splitlines()))
    assert config["cache"]["type"].strip('"') == "reflink,copy"
    assert config["core"]["analytics"] == "false"


def run(folder: Path, *command: str) -> str:
    """A command of this environment in ``folder``; its output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    environment.pop("SNAKEMAKE_PROFILE", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def commit(repo: Path, message: str) -> None:
    run(repo, "git", "add", "--all")
    run(repo, "git", "commit", "--quiet", "--message", message)


def trained(repo: Path) -> dict[Path, str]:
    """The journals of all training, which any further training would lengthen or add to."""
    return {path: path.read_text() for path in repo.glob("results/*/state/*/events.jsonl")}


def jobs(repo: Path) -> set[str]:
    """The rules that a run would execute."""
    table = run(repo, "snakemake", "--profile", "local", "all", "--dry-run", "--quiet", "rules")
    return set(re.findall(r"^(\w+) +\d+$", table, re.MULTILINE)) - {"total"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, str]]:
    """A repository with a miniature run, made by Snakemake and then recorded by DVC, and the journals in between."""
    repo = tmp_path_factory.mktemp("dvc") / "repository"
    repo.mkdir()
    for name in TREE:
        source, target = ROOT / name, repo / name
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target, follow_symlinks=False)
    (repo / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, repo / ".dvc")
    miniature = load(ROOT / "params.yaml", [ROOT / "experiments/micro.yaml"])
    (repo / "params.yaml").write_text(yaml.safe_dump(miniature.model_dump(mode="json"), sort_keys=False))
    run(repo, "git", "init", "--quiet")
    commit(repo, "settings")
    run(repo, "snakemake", "--profile", "local", "all")
    before = trained(repo)
    run(repo, "dvc", "repro")
    return repo, before


@pytest.mark.slow
def test_recording_a_finished_run_trains_nothing(recorded: tuple[Path, dict[Path, str]]) -> None:
    repo, before = recorded
    assert before
    assert trained(repo) == before
    assert json.loads(run(repo, "dvc", "status", "--json")) == {}
    assert jobs(repo) == set()
    assert run(repo, "git", "status", "--porcelain").split() in (["??", "dvc.lock"], [])
    assert "/state" not in (repo / "dvc.lock").read_text()


@pytest.mark.slow
def test_a_change_of_code_trains_nothing(recorded: tuple[Path, dict[Path, str]]) -> None:
    repo, before = recorded
    with open(repo / "src/msd/errors.py", "a", encoding="utf-8") as f:
        f.write("# a comment\n")
    assert "students" in json.loads(run(repo, "dvc", "status", "--json"))
    run(repo, "dvc", "repro")
    assert trained(repo) == before
    assert json.loads(run(repo, "dvc", "status", "--json")) == {}


@pytest.mark.slow
def test_a_pulled_copy_needs_no_training(recorded: tuple[Path, dict[Path, str]], tmp_path: Path) -> None:
    """Pulled files are all of about the same age, so Snakemake has to be told once that they are up to date."""
    repo, _ = recorded
    run(repo, "dvc", "remote", "add", "--force", "--default", "shelf", str(tmp_path / "shelf"))
    commit(repo, "recorded")
    run(repo, "dvc", "push")
    copy = tmp_path / "copy"
    run(tmp_path, "git", "clone", "--quiet", str(repo), str(copy))
    run(copy, "dvc", "pull")
    run(copy, "snakemake", "--profile", "local", "--touch", "all")
    assert jobs(copy) == {"track", "all"}, "the runs are not in this copy's mlflow.db"
    assert json.loads(run(copy, "dvc", "status", "--json")) == {}
    run(copy, "snakemake", "--profile", "local", "all")
    assert not (copy / "results/micro/state").exists(), "nothing was trained"
