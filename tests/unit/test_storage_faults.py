"""A full disk or a broken file costs a step back at most, and is said aloud."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from faults import (
    At,
    Call,
    child,
    ended,
    find_no_room,
    hidden,
    limit_files,
    nothing,
    quick_job,
    say,
    state_of,
    train_job,
)
from test_engine import events, flip_a_byte, truncate
from test_job import run
from tiny import BATCH, tensors

from msd.errors import StorageError
from msd.store import Manifest
from msd.training import checkpoint

UPDATES = 6
FAILS = 4  # the update whose save fails
RUN_ON_A_SMALL_DISK = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from test_storage_faults import on_a_small_disk; on_a_small_disk(*sys.argv[2:])"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the student that comes out if nothing is wrong."""
    return run(quick_job(tmp_path_factory.mktemp("undisturbed"), UPDATES)).sha256("student")


def newest(state: Path) -> int:
    """Updates of the newest checkpoint; all checkpoints must be whole, of finite weights."""
    found, skipped = checkpoint.load_newest(state)
    assert skipped == []
    assert found is not None
    assert all(t.isfinite().all() for t in tensors(found).values())
    return found["nimg"] // BATCH


def goes_on_to_the_same_bits(folder: Path) -> str:
    """Of a second run, in which nothing is wrong."""
    log = folder.with_suffix(".second")
    assert ended(child(log, train_job, folder, UPDATES)) == 0, log.read_text()
    return Manifest.read(quick_job(folder, UPDATES).node.manifest).sha256("student")


LIMIT = 100_000  # bytes; less than a checkpoint, more than all else
FULL = {
    "checkpoint": (At(FAILS, partial(limit_files, LIMIT)), None),
    "end of the checkpoint": (nothing, Call("fsync", "*checkpoint-*.pt", FAILS, find_no_room)),
    "record": (nothing, Call("fsync", "*checkpoint-*.json*", FAILS, find_no_room)),
}


@pytest.mark.parametrize("what", FULL)
def test_full_disk_keeps_the_checkpoint_before(what: str, undisturbed: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    progress, call = FULL[what]
    assert ended(child(log, train_job, folder, UPDATES, progress, call)) == StorageError.exit_code == 12
    said, state = log.read_text(), state_of(folder, UPDATES)
    assert said.startswith("msd: StorageError: A checkpoint could not be saved.")
    assert f"where: {state / f'checkpoint-{FAILS * BATCH:012d}.pt'}" in said
    assert any(f"why: [Errno {number}]" in said for number in (errno.EFBIG, errno.ENOSPC))
    assert "do: Make room, then run the same command again" in said
    assert hidden(folder) == []
    if what == "record":  # a checkpoint without one does not count
        (state / f"checkpoint-{FAILS * BATCH:012d}.pt").unlink()
    assert newest(state) == FAILS - 1
    assert goes_on_to_the_same_bits(folder) == undisturbed
    assert [event["nimg"] for event in events(state, "start")] == [0, (FAILS - 1) * BATCH]


def test_full_disk_at_the_end_trains_nothing_again(undisturbed: str, tmp_path: Path) -> None:
    """The networks to use cannot be written."""
    folder, log, state = tmp_path / "run", tmp_path / "log", state_of(tmp_path / "run", UPDATES)
    full = Call("replace", "*picture.png", 1, partial(limit_files, 10_000), after=True)
    code = ended(child(log, train_job, folder, UPDATES, nothing, full))
    said = log.read_text()
    assert code in (1, StorageError.exit_code), said
    assert "Traceback" not in said
    assert str(state / "student.safetensors") in said
    assert hidden(folder) == []
    assert newest(state) == UPDATES
    assert goes_on_to_the_same_bits(folder) == undisturbed
    assert len(events(state, "progress")) == UPDATES


def test_journal_that_cannot_be_written_is_no_traceback(undisturbed: str, tmp_path: Path) -> None:
    """Its last line is cut off, which the next attempt passes over."""
    folder, log, state = tmp_path / "run", tmp_path / "log", state_of(tmp_path / "run", UPDATES)
    full = Call("replace", "*checkpoint-*.json*", FAILS, partial(limit_to_the_journal, state), after=True)
    code = ended(child(log, train_job, folder, UPDATES, nothing, full))
    assert code in (1, StorageError.exit_code)
    assert "Traceback" not in log.read_text()
    assert str(state / "events.jsonl") in log.read_text()
    assert newest(state) == FAILS
    assert not (state / "events.jsonl").read_text().endswith("\n")
    assert goes_on_to_the_same_bits(folder) == undisturbed
    assert [event["nimg"] for event in events(state, "start")] == [0, FAILS * BATCH]


def limit_to_the_journal(state: Path) -> None:
    """The next line does not go in whole."""
    limit_files((state / "events.jsonl").stat().st_size + 20)


def on_a_small_disk(folder: str, log: str) -> None:
    """Train where two checkpoints fit and a third does not; make room; train on. Says what happened."""
    run, state = Path(folder, "run"), state_of(Path(folder, "run"), UPDATES)
    say(str(ended(child(Path(log), train_job, run, UPDATES))))
    say(f"{newest(state)} {hidden(run)}")
    subprocess.run(["mount", "-o", "remount,size=10m", folder], check=True)
    say(goes_on_to_the_same_bits(run))
    say(str([event["nimg"] // BATCH for event in events(state, "start")]))


def test_disk_without_room_keeps_the_checkpoint_before(undisturbed: str, tmp_path: Path) -> None:
    """The same on a real file system, of 640 kB."""
    folder, log = tmp_path / "disk", tmp_path / "log"
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=640k tmpfs "$0"'
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, mount, str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace of its own")
    python = [sys.executable, "-c", RUN_ON_A_SMALL_DISK, str(Path(__file__).parent), str(folder), str(log)]
    done = subprocess.run(
        [*namespace, f'{mount} && exec "$@"', str(folder), *python], capture_output=True, text=True, timeout=100
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["12", "2 []", undisturbed, "[0, 2]"]
    assert log.read_text().startswith("msd: StorageError: A checkpoint could not be saved.")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def vanish(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("both", [False, True], ids=["newest", "both"])
@pytest.mark.parametrize("spoil", [truncate, flip_a_byte, empty, vanish])
def test_broken_checkpoint_is_a_step_back(
    spoil: Callable[[Path], None], both: bool, undisturbed: str, tmp_path: Path
) -> None:
    """If both are broken, from the start."""
    folder, log, state = tmp_path / "run", tmp_path / "log", state_of(tmp_path / "run", UPDATES)
    assert ended(child(log, train_job, folder, UPDATES, At(FAILS + 1, partial(sys.exit, 1)))) == 1
    broken = sorted(state.glob("checkpoint-*.pt"), reverse=True)[: 1 + both]
    for path in broken:
        spoil(path)
    assert goes_on_to_the_same_bits(folder) == undisturbed
    assert events(state, "start")[-1]["nimg"] == (0 if both else FAILS - 1) * BATCH
    if spoil is not vanish:  # what is not there is not looked for
        lines = [event["message"] for event in events(state, "warning")]
        assert [path.name in line for path, line in zip(broken, lines, strict=True)] == [True] * len(broken)
        assert folder.with_suffix(".second").read_text().splitlines() == lines


def test_broken_checkpoints_do_not_displace_new_ones(undisturbed: str, tmp_path: Path) -> None:
    """After a step back to the start, what is saved before the broken ones counts as the newest."""
    folder, log, state = tmp_path / "run", tmp_path / "log", state_of(tmp_path / "run", UPDATES)
    assert ended(child(log, train_job, folder, UPDATES, At(FAILS + 1, partial(sys.exit, 1)))) == 1
    for path in state.glob("checkpoint-*.pt"):
        truncate(path)
    assert ended(child(log, train_job, folder, UPDATES, At(FAILS - 1, partial(sys.exit, 1)))) == 1
    assert goes_on_to_the_same_bits(folder) == undisturbed
    assert [event["nimg"] // BATCH for event in events(state, "start")] == [0, 0, FAILS - 2]
