"""Results through a DVC remote, a folder or an S3 endpoint: pushed, pulled elsewhere, damaged, out of reach."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc_repository import Repository

from msd.store import sha256_file

pytestmark = pytest.mark.slow
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "msd"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server in this process, on loopback, with an empty bucket."""
    server_module = pytest.importorskip("moto.server", reason="needs moto, a stand-in for S3")
    boto3 = pytest.importorskip("boto3", reason="needs boto3, which moto brings")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    ).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


def use_folder(repository: Repository, folder: Path) -> None:
    repository.run("dvc", "remote", "add", "--local", "--default", "shelf", str(folder))


def use_s3(repository: Repository, address: str) -> None:
    repository.run("dvc", "remote", "add", "--local", "--default", "shelf", f"s3://{BUCKET}/store")
    repository.run("dvc", "remote", "modify", "--local", "shelf", "endpointurl", address)


def kept(repository: Repository) -> dict[str, str]:
    """Path → sha256 of everything under results/ that travels."""
    paths = (path for path in repository.results().rglob("*") if path.is_file())
    names = {str(path.relative_to(repository.results())): path for path in paths}
    stays = ("state/", "logs/", "variants/", "tracking.json")
    return {name: sha256_file(path) for name, path in names.items() if not name.startswith(stays)}


@pytest.fixture(params=["folder", "s3"])
def use_remote(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Repository], None]:
    """Gives a repository a remote of one kind."""
    if request.param == "folder":
        return lambda repository: use_folder(repository, tmp_path / "shelf")
    address = request.getfixturevalue("s3")
    return lambda repository: use_s3(repository, address)


def test_a_pulled_copy_has_everything_and_nothing_to_do(
    recorded: Repository, tmp_path: Path, use_remote: Callable[[Repository], None]
) -> None:
    sender = recorded.copy(tmp_path / "sender", CREDENTIALS)
    use_remote(sender)
    sender.run("dvc", "push")
    receiver = sender.clone(tmp_path / "receiver", CREDENTIALS)
    use_remote(receiver)
    assert "files are what their manifests say" in receiver.pull()
    assert kept(receiver) == kept(recorded)
    assert receiver.jobs() == set()
    assert receiver.changed() == set()
    assert (receiver.folder / "mlflow.db").exists()
    assert not (receiver.results() / "state").exists(), "nothing was trained"


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    """Change one bit in the middle; rights and length stay."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_a_damaged_remote(recorded: Repository, folder: Path) -> Repository:
    """A clone that pulls from where one bit is wrong."""
    sender = recorded.copy(folder / "sender")
    use_folder(sender, folder / "shelf")
    sender.run("dvc", "push")
    flip(largest(folder / "shelf"))
    receiver = sender.clone(folder / "receiver")
    use_folder(receiver, folder / "shelf")
    return receiver


def test_a_damaged_object_in_a_remote_is_refused(recorded: Repository, tmp_path: Path) -> None:
    receiver = of_a_damaged_remote(recorded, tmp_path)
    message = receiver.pull(fails=True)
    assert "A file is damaged or is not the one that was meant." in message
    assert not (receiver.results() / "tracking.json").exists()


def test_a_verified_remote_refuses_a_damaged_object_by_itself(recorded: Repository, tmp_path: Path) -> None:
    receiver = of_a_damaged_remote(recorded, tmp_path)
    receiver.run("dvc", "remote", "modify", "--local", "shelf", "verify", "true")
    assert "Checkout failed" in receiver.run("dvc", "pull", fails=True)


def test_a_damaged_object_in_the_cache_is_refused(recorded: Repository, tmp_path: Path) -> None:
    repository = recorded.copy(tmp_path / "copy")
    use_folder(repository, tmp_path / "shelf")
    repository.run("dvc", "push")
    flip(largest(repository.folder / ".dvc/cache"))
    shutil.rmtree(repository.results())
    assert "A file is damaged or is not the one that was meant." in repository.pull(fails=True)


def test_a_remote_out_of_reach_is_one_error_and_loses_nothing(recorded: Repository, tmp_path: Path) -> None:
    with socket.socket() as s:  # bound but not listening: nobody answers there
        s.bind(("127.0.0.1", 0))
        repository = recorded.copy(tmp_path / "copy", CREDENTIALS)
        use_s3(repository, f"http://127.0.0.1:{s.getsockname()[1]}")
        before = kept(repository)
        message = repository.run("dvc", "push", fails=True)
        assert "failed to pull data from the cloud" in repository.pull(fails=True)
    errors = [line for line in message.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1, message
    assert "endpoint" in errors[0]
    assert kept(repository) == before
    assert repository.changed() == set()
    assert repository.jobs() == set()
