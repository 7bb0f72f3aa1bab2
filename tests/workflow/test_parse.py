"""What costs nothing stays so: the Snakefile is read at every cluster job, without torch and without delay."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from working_copy import COMMANDS, WorkingCopy

from msd.config import load
from msd.plan import Plan

BLOCKED = ("torch", "mlflow", "dvc")
HOOK = """
import sys

class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            with open({record!r}, "a") as f:
                print(name, file=f)
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Refuse)
"""


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """An environment whose Pythons cannot import what is blocked, and write down if they try."""
    record = tmp_path / "tried.txt"
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(blocked=BLOCKED, record=str(record)))
    return WorkingCopy.environment() | {"PYTHONPATH": str(tmp_path), "RECORD": str(record)}


def jobs(output: str) -> dict[str, int]:
    """Rule → number of jobs, from the table of a dry run."""
    table = output.split("Job stats:")[1]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def expected(copy: WorkingCopy) -> dict[str, int]:
    """The same from the plan; the report, the tracking and `all` are rules without nodes."""
    counts = {"report": 1, "track": 1, "all": 1}
    for node in Plan(load(copy.folder / "params.yaml")):
        counts[node.kind] = counts.get(node.kind, 0) + 1
    return counts | {"total": sum(counts.values())}


def test_dry_run_imports_neither_torch_nor_mlflow_nor_dvc(copy: WorkingCopy, blocked: dict[str, str]) -> None:
    for module in BLOCKED:  # the hook works
        assert subprocess.run([sys.executable, "-c", f"import {module}"], env=blocked, capture_output=True).returncode
    record = Path(blocked["RECORD"])
    assert record.read_text().split() == list(BLOCKED)
    record.unlink()
    command = copy.command("all", "--dry-run", configfile=None)
    done = subprocess.run(command, cwd=copy.folder, env=blocked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not record.exists(), record.read_text()
    assert jobs(done.stdout + done.stderr) == expected(copy)


def test_slurm_profile_resolves_and_students_ask_for_a_gpu(copy: WorkingCopy) -> None:
    output = copy.run("all", "--dry-run", configfile=None, profile="slurm")
    assert jobs(output) == expected(copy)
    asked = re.findall(r"^rule (\w+):$.*?^    resources: (.*?)$", output, re.MULTILINE | re.DOTALL)
    students = [resources for rule, resources in asked if rule in ("tsm", "dm", "adm")]
    assert len(students) == sum(expected(copy)[kind] for kind in ("tsm", "dm", "adm"))
    for resources in students:
        named = dict(item.split("=", 1) for item in resources.split(", "))
        assert named["gpu"] == "1"
        assert int(named["mem_mb"]) >= 8000
        assert int(named["runtime"]) >= 60
        assert named["slurm_partition"] == "gpu"
    assert not any("gpu=" in resources for rule, resources in asked if rule in ("data", "partition", "report"))


def test_dry_run_costs_little_more_than_an_empty_one(copy: WorkingCopy, tmp_path: Path) -> None:
    """The aim is 1.3 times; the test allows 1.5, because other processes disturb it."""
    (tmp_path / "Snakefile").write_text("rule all:\n")

    def seconds(folder: Path) -> float:
        began = time.monotonic()
        command = [str(COMMANDS / "snakemake"), "all", "--dry-run", "--cores", "1"]
        subprocess.run(command, cwd=folder, env=copy.environment(), check=True, capture_output=True)
        return time.monotonic() - began

    pairs = [(seconds(tmp_path), seconds(copy.folder)) for _ in range(3)]  # in turn: a disturbance meets both
    empty, full = (min(times) for times in zip(*pairs, strict=True))
    assert full <= 1.5 * empty, f"{full:.2f} s against {empty:.2f} s"


def test_unknown_key_is_one_clear_message(copy: WorkingCopy) -> None:
    overlay = copy.overlay("wrong-key", {"recip": {"dm": {"images": 64}}})
    output = copy.run("all", "--dry-run", configfile=overlay, fails=True)
    assert "ConfigError: The configuration has 1 problem." in output
    assert "recip: unknown key; did you mean 'recipe'?" in output
    assert "experiments/wrong-key.yaml" in output
    assert "Traceback" not in output


def test_settings_on_the_command_line_reach_the_plan(copy: WorkingCopy) -> None:
    """Snakemake hands values over half parsed; null, numbers and lists must arrive as what they are."""
    setting = "recipe={dm: {images: 12800, regression: null, grid_range: [0, 999]}, adm: {regression: null}}"
    output = copy.run(
        "students", "--dry-run", "--config", setting, "experiment=other", configfile=None, profile="slurm"
    )
    plan = Plan(load(copy.folder / "params.yaml", (), [setting, "experiment=other"]))
    for variant in ("single", "msd4"):
        assert str(plan.student_node(variant, 0, "adm").manifest) in output
    assert "pairs" not in jobs(output)


def test_imagenet_recipe_resolves_without_data_or_teacher(copy: WorkingCopy) -> None:
    output = copy.run("all", "--dry-run", configfile="experiments/imagenet64.yaml", profile="slurm")
    found = jobs(output)
    assert (found["tsm"], found["dm"], found["adm"]) == (2, 14, 14)  # 1 + 4 + 1 + 4 + 4 students, two smaller networks


def test_without_slurm_it_says_so(copy: WorkingCopy, tmp_path: Path) -> None:
    for name in ("bash", "which", "git", "uname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    environment = {**copy.environment(), "PATH": f"{COMMANDS}:{tmp_path}"}
    command = copy.command("students", profile="slurm", configfile=copy.overlay("no-slurm", {}))
    done = subprocess.run(command, cwd=copy.folder, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ConfigError: SLURM is not on this machine" in done.stderr
    assert "--profile local" in done.stderr
    assert "Traceback" not in done.stderr
