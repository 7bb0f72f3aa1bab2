"""The `msd` command: help that helps, one clear error with its own exit code, nothing half-written."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from msd.cli.main import build_parser, main
from msd.config import load
from msd.networks import load_network
from msd.plan import Plan
from msd.store import Manifest

MSD = Path(sys.executable).with_name("msd")
NINE_CLASSES = "[[0, 1, 2, 3, 4], [5, 6, 7, 8]]"


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with the data prepared."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("params.yaml", "protocols", "experiments", "resources"):
        (folder / name).symlink_to(ROOT / name)
    assert msd(folder, "data").returncode == 0
    return folder


def msd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MSD, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def files_under(folder: Path) -> dict[Path, int]:
    """Without the records of failures."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.parent.name != "failures"}


def expect(place: Path, code: int, *arguments: str) -> str:
    """Run a command that must fail with ``code``, one error and no trace in results; returns the error."""
    before = files_under(place / "results")
    result = msd(place, *arguments)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("msd: ")
    assert result.stderr.count("msd: ") == 1
    assert "Traceback" not in result.stderr
    assert files_under(place / "results") == before
    return result.stderr


@pytest.mark.parametrize("name", subcommands())
def test_every_subcommand_explains_itself_with_examples_that_parse(name: str) -> None:
    parser = subcommands()[name]
    text = parser.format_help()
    assert "examples:" in text
    assert (parser.description or "").endswith(".")
    examples = text.split("examples:\n")[1].strip().splitlines()
    assert examples
    for example in examples:
        command, *arguments = shlex.split(example.split(" > ")[0])
        assert (command, arguments[0]) == ("msd", name)
        build_parser().parse_args(arguments)


def test_every_option_has_a_help_text() -> None:
    for name, parser in subcommands().items():
        for action in parser._actions:
            assert action.help or not action.option_strings, f"msd {name} {action.option_strings}"


def test_every_rule_is_a_subcommand() -> None:
    kinds = {node.kind for node in Plan(load(ROOT / "params.yaml"))}
    assert kinds | {"report", "track"} <= subcommands().keys()


def test_same_command_again_writes_the_same_manifest(place: Path) -> None:
    before = {p: Manifest.read(p).body["files"] for p in (place / "results").rglob("manifest.json")}
    assert len(before) == 1
    result = msd(place, "data")
    assert result.returncode == 0
    assert {p: Manifest.read(p).body["files"] for p in (place / "results").rglob("manifest.json")} == before
    assert str(next(iter(before)).relative_to(place)) in result.stdout


def test_wrong_key(place: Path) -> None:
    error = expect(place, 2, "data", "--config", "recipe.dm.imges=640")
    assert "recipe.dm.imges: unknown key; did you mean 'images'?" in error


def test_manifest_of_another_configuration(place: Path) -> None:
    error = expect(place, 2, "dm", "results/mnist/train/dm-00000000/manifest.json")
    assert "--configfile" in error


def test_piece_of_work_that_is_not_named(place: Path) -> None:
    error = expect(place, 2, "dm")
    assert "msd4 dm student 2/4" in error  # the choices are listed


def test_missing_teacher_file(place: Path) -> None:
    error = expect(place, 3, "teacher", "--config", "teacher.path=resources/teachers/nowhere.safetensors")
    assert "where: resources/teachers/nowhere.safetensors" in error


def test_missing_configuration_file(place: Path) -> None:
    assert "nowhere.yaml" in expect(place, 3, "data", "--configfile", "nowhere.yaml")


def test_missing_input(place: Path) -> None:
    error = expect(place, 3, "dm", "--variant", "msd4")
    assert "manifest.json" in error
    assert "snakemake" in error


def test_flipped_byte_in_the_teacher(place: Path) -> None:
    teacher = load(ROOT / "params.yaml").teacher
    content = bytearray((ROOT / teacher.path).read_bytes())
    content[len(content) // 2] ^= 1
    (place / "flipped.safetensors").write_bytes(content)
    error = expect(place, 4, "teacher", "--config", "teacher.path=flipped.safetensors")
    assert "where: flipped.safetensors" in error
    assert f"expected {teacher.sha256[:16]}" in error


def test_partition_that_leaves_a_class_out(place: Path) -> None:
    setting = f"variants={{a: {{students: 2, partition: {{kind: explicit, parts: {NINE_CLASSES}}}}}}}"
    assert "classes that no part owns: [9]" in expect(place, 5, "partition", "--config", setting)


def test_more_students_than_classes(place: Path) -> None:
    assert "11 students cannot share 10 classes" in expect(
        place, 5, "partition", "--config", "variants={a: {students: 11}}"
    )


def test_wrong_arguments_end_with_2(place: Path) -> None:
    result = msd(place, "sample", "--class", "three", "--out", "x.png")
    assert result.returncode == 2
    assert "invalid int value: 'three'" in result.stderr


def test_configuration_is_shown_without_torch(place: Path) -> None:
    code = "import sys; from msd.cli.main import main; main(['params']); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "experiment: mnist" in result.stdout


def test_short_jobs_do_not_wait_for_torch(place: Path) -> None:
    calls = [["data"], ["teacher"], ["partition", "--variant", "msd4"]]
    code = f"import sys; from msd.cli.main import main; [main(c) for c in {calls}]; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("manifest.json") == len(calls)


def test_cost_of_the_imagenet_networks(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is downloaded for it, and another width gives other numbers."""
    (place / "imagenet64.yaml").write_text((ROOT / "experiments" / "imagenet64.yaml").read_text())
    monkeypatch.chdir(place)

    def summary(*options: str) -> str:
        assert main(["network", "summary", "--configfile", "imagenet64.yaml", *options]) == 0
        return capsys.readouterr().out

    costs = json.loads(summary("--json"))
    assert costs["teacher"]["parameters"] == 295_899_267
    assert round(costs["teacher"]["gflop"], 1) == 219.3
    for name, share in (("minus42", 0.42), ("minus71", 0.71)):
        assert abs(1 - costs[name]["parameters"] / costs["teacher"]["parameters"] - share) < 0.01
    narrow = json.loads(summary("--json", "--config", "teacher.network.model_channels=128"))
    assert narrow["teacher"]["parameters"] < 0.5 * costs["teacher"]["parameters"]
    assert narrow["teacher"]["gflop"] < 0.5 * costs["teacher"]["gflop"]
    assert "295,899,267" in summary()


def test_recipe_without_its_data_says_what_is_missing(place: Path) -> None:
    (place / "imagenet64.yaml").write_text((ROOT / "experiments" / "imagenet64.yaml").read_text())
    error = expect(place, 3, "data", "--configfile", "imagenet64.yaml")
    assert "data/imagenet64" in error
    assert "docs/data.md" in error


def test_convert_a_reference_pickle(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickle, out = shared / "golden" / "edm" / "adm_cond.pkl", tmp_path / "out.safetensors"
    assert main(["teacher", "convert", str(pickle), str(out)]) == 0
    assert "2,190,147 parameters" in capsys.readouterr().out
    assert load_network(out).num_parameters == 2_190_147
    damaged = tmp_path / "damaged.pkl"
    damaged.write_bytes(pickle.read_bytes()[:-1000] + bytes(1000))
    result = msd(tmp_path, "teacher", "convert", "--sha256", "0" * 64, str(damaged), str(tmp_path / "not.safetensors"))
    assert result.returncode == 4
    assert not list(tmp_path.glob("not*"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("msd ")
