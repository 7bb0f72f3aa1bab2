"""Every notebook runs on a tiny finished experiment, and is kept in git without what it printed."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from working_copy import ROOT, WorkingCopy

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 240  # seconds for one notebook


@pytest.fixture(scope="module")
def finished(copy: WorkingCopy) -> tuple[WorkingCopy, str]:
    """The copy with an experiment of a teacher and two variants, and the overlay that chooses it."""
    variants = {
        "teacher": {"model": "teacher"},
        "single": {"students": 1, "stages": ["dm"]},
        "pair": {"students": 2, "stages": ["dm"]},
    }
    overlay = copy.overlay("notebooks", {"variants": variants})
    copy.run("report", configfile=overlay)
    shutil.copytree(ROOT / "notebooks", copy.folder / "notebooks")
    return copy, overlay


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, finished: tuple[WorkingCopy, str]) -> None:
    copy, overlay = finished
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", f"--nbmake-timeout={LIMIT}"]
    done = subprocess.run(
        [*command, "--overwrite", f"notebooks/{notebook.name}"],
        cwd=copy.folder,
        env=copy.environment() | {"MSD_CONFIGFILE": overlay},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    executed = json.loads((copy.folder / "notebooks" / notebook.name).read_text())
    shown = json.dumps([cell.get("outputs") for cell in executed["cells"]])
    assert "pair" in shown, "it shows another experiment"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_short(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert cells[0]["cell_type"] == "markdown"
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines() if not line.startswith("%")]
    assert any(line.startswith("from msd") for line in lines)
    assert len(lines) < 80
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.While, ast.Try)
    assert not [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, logic)]
