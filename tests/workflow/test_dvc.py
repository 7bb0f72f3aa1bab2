"""DVC around the workflow: its stages fit the rules, and recording finished work trains nothing."""

from __future__ import annotations

import configparser
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc_repository import ROOT, Repository

from msd.config import Experiment, load
from msd.plan import Plan
from msd.store import digest

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


CHANGES: Mapping[str, set[str]] = {
    "seed=1": {"networks", "students", "evaluations"},
    "data.evaluation_share=0.4": {"data"},
    "teacher.sha256=null": {"networks"},
    "evaluation.judge.sha256=null": {"networks", "evaluations"},
    "networks.small.model_channels=16": {"students"},
    "recipe.tsm.images=32": {"students"},
    "recipe.dm.images=8192": {"students"},
    "recipe.dm.regression.pairs=32": {"students"},
    "recipe.adm.images=2560": {"students"},
    "evaluation.protocol.sampler.num_steps=4": {"networks", "bundles", "evaluations"},
    "evaluation.protocol.images=100": {"networks", "bundles", "evaluations"},
    "evaluation.latency_repeats=3": {"evaluations"},
    "variants={late: {students: 2}}": {"students", "bundles", "evaluations", "report"},
    "toy.width=5": {"toy", "report"},
    "compute.threads=2": set(),
}


def settings_by_stage(experiment: Experiment) -> dict[str, Counter[str]]:
    """Stage of dvc.yaml → digests of the settings of the nodes whose results it keeps."""
    groups = {Path(path).name: stage for stage in STAGES for path in outs(STAGES[stage])}
    found: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    for node in Plan(experiment):
        found[groups[Path(node.group).parts[0]]][digest([node.name, node.settings])] += 1
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_concerns_the_stages_that_name_it(change: str) -> None:
    """By dvc.yaml; and no result changes its settings unseen by the stage that makes it."""
    key = change.split("=")[0]
    named = {
        stage
        for stage in STAGES
        if any(key == p or key.startswith(f"{p}.") or p.startswith(f"{key}.") for p in STAGES[stage].get("params", []))
    }
    assert named == CHANGES[change]
    before = settings_by_stage(load(ROOT / "params.yaml"))
    after = settings_by_stage(load(ROOT / "params.yaml", overrides=[change]))
    assert {stage for stage in STAGES if before[stage] != after[stage]} <= named


@pytest.mark.slow
def test_after_snakemake_and_commit_there_is_nothing_to_do(recorded: Repository) -> None:
    assert recorded.trained()
    assert recorded.changed() == set()
    assert recorded.jobs() == set()
    assert recorded.run("git", "status", "--porcelain") == ""
    assert "/state" not in (recorded.folder / "dvc.lock").read_text()


@pytest.mark.slow
def test_weights_are_kept_once_as_bundles_and_training_state_never(recorded: Repository) -> None:
    """Of the students; the teacher's row is a bundle too, and its network a result of its own."""
    kept = recorded.run("dvc", "ls", "--recursive", "--dvc-only", ".").split()
    weights = [Path(path) for path in kept if path.endswith(".safetensors") and "student" in path]
    assert sorted(path.name for path in weights) == ["student-0.safetensors", "student-1.safetensors"]
    assert all("bundles" in path.parts for path in weights)
    assert not [path for path in kept if "/state/" in path or "/logs/" in path]
    assert len(kept) < 100


@pytest.mark.slow
def test_a_change_of_code_trains_nothing(recorded: Repository, tmp_path: Path) -> None:
    repository = recorded.copy(tmp_path / "copy")
    with open(repository.folder / "src/msd/errors.py", "a", encoding="utf-8") as f:
        f.write("# a comment\n")
    assert "students" in repository.changed()
    repository.run("dvc", "repro")
    assert repository.trained() == recorded.trained()
    assert repository.changed() == set()
    assert repository.jobs() == set()


@pytest.mark.slow
def test_an_experiment_trains_what_it_changes_and_can_be_compared(recorded: Repository, tmp_path: Path) -> None:
    repository = recorded.copy(tmp_path / "copy")
    before = repository.trained()
    repository.run("dvc", "exp", "run", "--name", "longer", "--set-param", "recipe.dm.images=96")
    after = repository.trained()
    assert before.items() < after.items()
    assert len(after) == len(before) + 2, "two students, and nobody else"
    compared = repository.run("dvc", "metrics", "diff", "--md")
    assert "pair.fd_digits" in compared
    listed = repository.run("dvc", "exp", "show", "--csv")
    assert "longer" in listed
    assert "recipe.dm.images" in listed
    repository.run("git", "checkout", "--quiet", "params.yaml", "dvc.lock")
    repository.run("dvc", "repro")
    assert repository.trained() == after, "the parameter set back: the students are found again"
    assert (repository.results() / "metrics.json").read_text() == (recorded.results() / "metrics.json").read_text()


@pytest.mark.slow
def test_the_page_of_plots_needs_no_network(recorded: Repository, tmp_path: Path) -> None:
    repository = recorded.copy(tmp_path / "copy")
    repository.run("dvc", "plots", "show")
    page = (repository.folder / "dvc_plots/index.html").read_text()
    assert "<script" not in page
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', page)
    assert len(pictures) == len(list((repository.results() / "figures").glob("*.png"))) > 0
    assert [src for src in pictures if not (repository.folder / "dvc_plots" / src).is_file()] == []
