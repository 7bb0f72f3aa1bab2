"""Same command = start, resume, or nothing to do; the manifest is the proof."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import BATCH, dm_step

from msd.config import Compute
from msd.distill.dm import DmStep
from msd.errors import MsdError
from msd.networks import save_network
from msd.plan import Node
from msd.store import Manifest, sha256_file
from msd.training.job import Job, run_job

UPDATES = 4
COMPUTE = Compute(threads=1, log_every_updates=1, checkpoint_every_updates=1)
RUN_ENDLESSLY = "import sys; sys.path.insert(0, sys.argv[1]); from test_job import endless; endless(sys.argv[2])"


def job(folder: Path, name: str = "one", identity: dict[str, Any] | None = None, images: int = UPDATES * BATCH) -> Job:
    """A real training job of the tiny networks."""
    node = Node("dm", "train", name, {"images": images}, {}, folder, "tiny dm")

    return Job(
        node=node,
        identity=identity or {"images": images},
        images=images,
        batch_size=BATCH,
        make_step=lambda micro_batch: dm_step(),
        save=save_network,
        results={"part": [1, 2]},
        measure=lambda files: {"measured": sha256_file(files["student"])},
    )


def run(job: Job) -> Manifest:
    return run_job(job, COMPUTE, lambda *_: None)


def no_step(micro_batch: int | None) -> Any:
    raise AssertionError("the step must not be built")


def no_update(self: DmStep, start: int) -> Any:
    raise AssertionError("there is nothing left to train")


def endless(folder: str) -> None:
    """What the subprocess of a test runs: far longer than the test."""
    try:
        run_job(replace(job(Path(folder)), images=10**9), COMPUTE, lambda *_: print("update", flush=True))
    except MsdError as e:
        sys.exit(e.exit_code)


def state_folders(folder: Path) -> list[Path]:
    return sorted((folder / "state").iterdir())


def test_manifest_says_what_was_made(tmp_path: Path) -> None:
    written = run(job(tmp_path))
    manifest = Manifest.read(job(tmp_path).node.manifest)
    assert manifest.body == written.body
    student = manifest.file("student")
    assert student.parent == state_folders(tmp_path)[0]
    assert manifest.results["nimg"] == UPDATES * BATCH
    assert manifest.results["part"] == [1, 2]
    assert manifest.results["attempts"] == 1
    assert manifest.results["seconds"] > 0
    assert manifest.results["measured"] == manifest.sha256("student")
    assert "dm_loss" in manifest.results["metrics"]
    assert manifest.file("journal").name == "events.jsonl"


def test_finished_work_is_adopted_without_building_the_step(tmp_path: Path) -> None:
    first = run(job(tmp_path))
    first.path.unlink()  # as Snakemake does before it starts a job
    again = run(replace(job(tmp_path), make_step=no_step))
    assert again.sha256("student") == first.sha256("student")
    assert again.results == first.results


def test_another_path_of_the_same_identity_adopts_too(tmp_path: Path) -> None:
    first = run(job(tmp_path, "one", identity={"classes": [1, 2]}))
    other = run(replace(job(tmp_path, "two", identity={"classes": [1, 2]}), make_step=no_step))
    assert other.path != first.path
    assert other.file("student") == first.file("student")


def test_another_identity_starts_beside_it(tmp_path: Path) -> None:
    one, other = (run(job(tmp_path, name, identity={"classes": part})) for name, part in (("one", [1]), ("two", [2])))
    assert one.file("student") != other.file("student")
    assert len(state_folders(tmp_path)) == 2


def test_compute_is_no_part_of_the_identity(tmp_path: Path) -> None:
    run(job(tmp_path))
    other = Compute(threads=1, device="cpu", log_every_updates=3, checkpoint_every_updates=3)
    run_job(replace(job(tmp_path), make_step=no_step), other, lambda *_: None)


@pytest.mark.parametrize("spoil", ["flip", "remove", "forget"])
def test_damaged_weights_are_exported_again_not_trained_again(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(job(tmp_path))
    student, sha256 = first.file("student"), first.sha256("student")
    if spoil == "flip":
        content = bytearray(student.read_bytes())
        content[-5] ^= 1
        student.write_bytes(content)
    elif spoil == "remove":
        student.unlink()
    else:
        (student.parent / "finished.json").write_text("{")
    monkeypatch.setattr(DmStep, "__call__", no_update)
    again = run(job(tmp_path))
    assert again.sha256("student") == sha256 == sha256_file(student)


def test_second_export_leaves_an_older_manifest_whole(tmp_path: Path) -> None:
    """The journal goes on in the state; what a manifest names must stay as it was."""
    first = run(job(tmp_path, "one", identity={"classes": [1]}))
    first.file("student").unlink()
    run(job(tmp_path, "two", identity={"classes": [1]}))
    for name in ("student", "journal"):
        assert Manifest.read(first.path).file(name).exists()


def test_interrupted_job_writes_no_manifest_and_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_ENDLESSLY, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "update\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert not job(tmp_path).node.manifest.exists()
    (folder,) = state_folders(tmp_path)
    assert list(folder.glob("checkpoint-*.pt"))
    assert not (folder / "finished.json").exists()


def test_second_job_of_one_identity_waits_and_adopts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While another process holds the state, a job waits; the work it finds done is not done again."""
    folder = run(job(tmp_path)).file("student").parent
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from msd.training.lease import Lease\n"
            "with Lease(Path(sys.argv[1])): print('holds', flush=True); time.sleep(0.5)",
            str(folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    began = time.monotonic()
    run(replace(job(tmp_path), make_step=no_step))
    assert time.monotonic() - began > 0.2
    assert "another job trains it; waiting" in capsys.readouterr().out
    assert holder.wait(5) == 0
