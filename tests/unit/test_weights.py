"""Weights from every source: verified before use, with their origin, and refused with one clear error."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import file_server
import pytest
from edm_files import edm_pickle, record_of
from file_server import FileServer
from tiny import ROOT, network
from tiny_latent import latent

from msd.cli.main import main
from msd.config import Network, load
from msd.errors import DamagedFileError, DownloadError, MissingFileError
from msd.networks import load_network, save_network
from msd.networks.files import build_network
from msd.plan import Plan
from msd.registry import KNOWN, HubFolder
from msd.store import Manifest, sha256_file, write_json
from msd.weights import NETWORK_FORMAT, adopt_weights, fetch_weights, read_header

TWO_STUDENTS = "variants={a: {students: 2}}"
COMMIT = "4" * 40
CIFAR = "edm-cifar10-32x32-cond-vp"
HUB = "import json, sys; from msd.weights import fetch_weights; print(fetch_weights(json.loads(sys.argv[1]))[0])"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server.running() as running:
        yield running


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and an empty mirror."""
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("MSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MSD_MIRROR", str(tmp_path / "mirror"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_network(network(), path)
    return path


def file(path: Path, sha256: str | None = None) -> dict[str, Any]:
    return {"source": "file", "path": str(path), "sha256": sha256}


def test_own_file_is_checked_against_the_given_digest(saved: Path) -> None:
    digest = sha256_file(saved)
    assert fetch_weights(file(saved, digest)) == (saved, {})
    with pytest.raises(DamagedFileError) as damaged:
        fetch_weights(file(saved, "0" * 64))
    assert damaged.value.where == str(saved)


def test_own_file_is_checked_against_the_record_beside_it(saved: Path) -> None:
    record = {"weights": {"path": saved.name, "sha256": sha256_file(saved)}, "nimg": 5}
    write_json(saved.with_suffix(".json"), record)
    assert fetch_weights(file(saved)) == (saved, record)
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(DamagedFileError):
        fetch_weights(file(saved))


@pytest.mark.parametrize("record", [{"weights": {"path": "net.pkl", "sha256": "0" * 64}}, {"weights": 1}, {}, [], None])
def test_record_of_something_else_is_not_believed(saved: Path, record: object) -> None:
    write_json(saved.with_suffix(".json"), record)
    assert fetch_weights(file(saved)) == (saved, {})


def test_converted_pickle_can_still_be_used(tmp_path: Path) -> None:
    """The record beside it is that of the converted file."""
    edm_file(tmp_path / "t.pkl")
    assert main(["teacher", "convert", str(tmp_path / "t.pkl"), str(tmp_path / "t.safetensors")]) == 0
    assert fetch_weights(file(tmp_path / "t.pkl")) == (tmp_path / "t.pkl", {})
    path, origin = fetch_weights(file(tmp_path / "t.safetensors"))
    assert origin["weights"]["sha256"] == sha256_file(path)


def test_own_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as missing:
        fetch_weights(file(tmp_path / "nowhere.safetensors"))
    assert "source: train" in missing.value.todo


def test_url_is_adopted_with_the_number_of_parameters(saved: Path, server: FileServer, tmp_path: Path) -> None:
    server.files["/net.safetensors"] = saved.read_bytes()
    settings = {"source": "url", "url": f"{server.url}/net.safetensors", "sha256": sha256_file(saved)}
    manifest = adopt_weights(tmp_path / "manifest.json", "teacher", settings, NETWORK_FORMAT)
    assert manifest.results == {"origin": {}, "parameters": network().num_parameters}
    assert manifest.file("weights").read_bytes() == saved.read_bytes()
    assert Manifest.read(tmp_path / "manifest.json").settings == settings


@pytest.mark.parametrize("song", [None, {}, {"embedding": "fourier", "noise_channel_mult": 2}])
def test_a_header_counts_parameters_alone(song: dict[str, Any] | None, tmp_path: Path) -> None:
    net = network(architecture="adm" if song is None else "song", **({} if song is None else {"song": song}))
    save_network(net, tmp_path / "net.safetensors")
    assert read_header(tmp_path / "net.safetensors", NETWORK_FORMAT).parameters == net.num_parameters


def test_the_states_of_the_empty_prompt_are_no_parameters(tmp_path: Path) -> None:
    net = latent()
    save_network(net, tmp_path / "net.safetensors")
    held = sum(tensor.numel() for tensor in net.state_dict().values())
    assert held - net.empty.numel() == net.num_parameters
    assert read_header(tmp_path / "net.safetensors", NETWORK_FORMAT).parameters == net.num_parameters


def test_url_of_something_else_is_not_adopted(server: FileServer, tmp_path: Path) -> None:
    server.files["/net.safetensors"] = b"something else" * 100
    path = tmp_path / "expected"
    path.write_bytes(server.files["/net.safetensors"])
    settings = {"source": "url", "url": f"{server.url}/net.safetensors", "sha256": sha256_file(path)}
    with pytest.raises(DamagedFileError):
        adopt_weights(tmp_path / "manifest.json", "teacher", settings, NETWORK_FORMAT)
    assert not (tmp_path / "manifest.json").exists()


def hub(server: FileServer, tmp_path: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Fetch from a hub on this machine, in a process of its own: its client reads the address when it is imported."""
    settings = {"source": "hf", "repo": "me/net", "revision": COMMIT, "filename": "a/net.bin"} | settings
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret"}
    command = [sys.executable, "-c", HUB, json.dumps(settings)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_hub_is_asked_for_the_commit(saved: Path, server: FileServer, tmp_path: Path) -> None:
    server.files[f"/me/net/resolve/{COMMIT}/a/net.bin"] = saved.read_bytes()
    server.headers = {"X-Repo-Commit": COMMIT}
    result = hub(server, tmp_path, sha256=sha256_file(saved))
    path = Path(result.stdout.strip())
    assert path.read_bytes() == saved.read_bytes()
    assert path.is_relative_to(tmp_path / "cache" / "hub")
    wrong = hub(server, tmp_path, sha256="0" * 64)
    assert "DamagedFileError" in wrong.stderr


def test_hub_without_the_file_is_one_error_without_token(server: FileServer, tmp_path: Path) -> None:
    error = hub(server, tmp_path, sha256="0" * 64).stderr
    assert "DownloadError: A download from the hub failed." in error
    assert f"where: me/net@{COMMIT}/a/net.bin" in error
    assert "hf_secret" not in error


def test_a_pipeline_on_the_hub_comes_without_its_pickles(server: FileServer, tmp_path: Path) -> None:
    names = ["model_index.json", "unet/config.json", "unet/model.safetensors", "tokenizer/merges.txt"]
    left = ["unet/model.bin", "unet/model.fp16.safetensors", "model.ckpt", "safety_checker/config.json"]
    about = {"id": "me/net", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names + left]}
    server.files = {f"/me/net/resolve/{COMMIT}/{name}": name.encode() for name in names + left}
    tree = [{"type": "file", "path": name, "size": len(name), "oid": COMMIT} for name in names + left]
    server.files[f"/api/models/me/net/revision/{COMMIT}"] = json.dumps(about).encode()
    server.files[f"/api/models/me/net/tree/{COMMIT}"] = json.dumps(tree).encode()
    server.headers = {"X-Repo-Commit": COMMIT}
    result = hub(server, tmp_path, filename=None, sha256=None)
    folder = Path(result.stdout.strip())
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(names), result.stderr
    missing = hub(server, tmp_path, repo="me/other", filename=None, sha256=None)
    assert "DownloadError: A download from the hub failed." in missing.stderr


def test_mirror_of_the_hub(saved: Path, tmp_path: Path) -> None:
    there = tmp_path / "mirror" / "me" / "net" / "a"
    there.mkdir(parents=True)
    (there / "net.bin").write_bytes(saved.read_bytes())
    settings = {"source": "hf", "repo": "me/net", "revision": COMMIT, "filename": "a/net.bin"}
    assert fetch_weights({**settings, "sha256": sha256_file(saved)})[0] == there / "net.bin"
    with pytest.raises(DamagedFileError):
        fetch_weights({**settings, "sha256": "0" * 64})
    (tmp_path / "mirror/me/net/model_index.json").write_text("{}")
    pipeline = {"source": "hf", "repo": "me/net", "revision": COMMIT, "filename": None}
    assert fetch_weights(pipeline)[0] == tmp_path / "mirror/me/net"


def test_known_folder_is_verified_file_by_file(tmp_path: Path) -> None:
    place = KNOWN["stable-diffusion-v1-5"].place
    assert isinstance(place, HubFolder)
    folder = tmp_path / "mirror" / place.repo
    for name in place.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(DamagedFileError) as damaged:
        fetch_weights({"source": "known", "name": "stable-diffusion-v1-5"})
    assert damaged.value.where == str(folder / "text_encoder/model.safetensors")


def edm_file(path: Path, *, resolution: int = 32, classes: int = 10) -> None:
    """A pickle as EDM's, of a small DDPM++ network."""
    settings = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    net = build_network(
        Network.model_validate({"architecture": "song", **settings}),
        image_shape=(3, resolution, resolution),
        num_conditions=classes,
        seed=0,
    )
    kwargs = {"img_resolution": resolution, "img_channels": 3, "label_dim": classes, "model_type": "SongUNet"}
    path.write_bytes(edm_pickle(record_of(net, "EDMPrecond", **kwargs, **settings, dropout=0.0)))


def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> int:
    """Run ``msd teacher`` with such a teacher and one student, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    options = [text for s in ("variants={a: {students: 1}}", *settings) for text in ("--config", s)]
    return main(["teacher", "--params", str(ROOT / "params.yaml"), *options])


def test_known_pickle_becomes_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = tmp_path / "mirror" / f"{CIFAR}.pkl"
    edm_file(pickled)
    assert teacher(tmp_path, monkeypatch, f"teacher={{source: known, name: {CIFAR}}}") == 0
    (path,) = (tmp_path / "results").rglob("manifest.json")
    manifest = Manifest.read(path)
    weights = manifest.file("weights")
    assert weights.suffix == ".safetensors"
    net, original = load_network(weights), load_network(pickled)
    assert (net.image_shape, net.num_conditions) == ((3, 32, 32), 10)
    assert all((t == net.state_dict()[name]).all() for name, t in original.state_dict().items())
    origin = manifest.results["origin"]
    assert origin["licence"] == "CC BY-NC-SA 4.0"
    assert origin["url"].endswith(f"/{CIFAR}.pkl")
    assert origin["converted_from"]["sha256"] == sha256_file(pickled)


@pytest.mark.parametrize("other", [{"resolution": 16}, {"classes": 4}])
def test_known_pickle_of_another_network(
    other: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edm_file(tmp_path / "mirror" / f"{CIFAR}.pkl", **other)
    assert teacher(tmp_path, monkeypatch, f"teacher={{source: known, name: {CIFAR}}}") == DamagedFileError.exit_code
    assert "holds another network" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/**/manifest.json"))


def test_known_pickle_that_runs_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror" / f"{CIFAR}.pkl").write_bytes(pickle.dumps({"ema": os.system}))
    assert teacher(tmp_path, monkeypatch, f"teacher={{source: known, name: {CIFAR}}}") == 10
    assert "system" in capsys.readouterr().err


def test_unconditional_teacher_has_nothing_to_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edm_file(tmp_path / "own.pkl", classes=0)
    source = "teacher={path: own.pkl, sha256: null}"
    assert teacher(tmp_path, monkeypatch, source) == 0
    assert teacher(tmp_path, monkeypatch, source, TWO_STUDENTS) == 2
    assert "nothing to split among 2 students" in capsys.readouterr().err
    edm_file(tmp_path / "own.pkl", classes=10)
    assert teacher(tmp_path, monkeypatch, source, TWO_STUDENTS) == 0


def test_student_stage_looks_at_the_teacher_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: Manifest
) -> None:
    """The teacher's manifest may be older than the variant with several students."""
    edm_file(tmp_path / "own.pkl", classes=0)
    source = "teacher={path: own.pkl, sha256: null}"
    assert teacher(tmp_path, monkeypatch, source) == 0
    recipe = ["--config", "recipe.dm.regression=null", "--config", "recipe.adm.regression=null"]
    options = ["--params", str(ROOT / "params.yaml"), "--config", source, "--config", TWO_STUDENTS, *recipe]
    plan = Plan(load(ROOT / "params.yaml", (), options[3::2]))
    shutil.copytree(digits.path.parent, plan.data.manifest.parent)
    for command in (["partition", "--variant", "a"], ["dm", "--variant", "a"]):
        code = main([*command, *options])
    assert code == 2
    assert "nothing to split among 2 students" in capsys.readouterr().err


def test_description_of_no_network(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = network()
    net.description = {}
    save_network(net, saved)
    assert teacher(tmp_path, monkeypatch, "teacher={path: net.safetensors, sha256: null}") == 4
    assert "describes no network" in capsys.readouterr().err


def test_offline_machine_is_told_of_the_mirror(server: FileServer, tmp_path: Path) -> None:
    settings = {"source": "url", "url": f"{server.url}/nowhere.safetensors", "sha256": "0" * 64}
    with pytest.raises(DownloadError) as error:
        fetch_weights(settings)
    assert "MSD_MIRROR" in error.value.todo
