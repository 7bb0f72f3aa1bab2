"""Networks that tests need and the repository does not carry, by the scripts that fetch them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fetched_by(script: str, what: str) -> Path:
    """What a script of ``scripts/`` fetches from PyPI; without it the test is skipped with the reason."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / script)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{what} cannot be had from PyPI: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip())
