"""One process at a time writes to a folder, and a dead one holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from msd import store

HOLD = """
import sys, time
from pathlib import Path
from msd.store import one_writer
with one_writer(Path(sys.argv[1]), on_wait=lambda: print("waits", flush=True)):
    print("holds", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that takes the folder."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_second_process_waits_for_the_first(tmp_path: Path) -> None:
    first = hold(tmp_path, 1.0)
    assert said(first) == "holds"
    second = hold(tmp_path, 0.0)
    assert said(second) == "waits"
    assert said(second) == "holds"
    assert first.wait(5) == 0
    assert second.wait(5) == 0


def test_kill_9_releases_the_folder(tmp_path: Path) -> None:
    holder = hold(tmp_path, 600)
    assert said(holder) == "holds"
    holder.kill()
    holder.wait(5)
    waited = []
    with store.one_writer(tmp_path, on_wait=lambda: waited.append(1)):
        pass
    assert not waited
