"""COCO 2014, small: fetched from a real server, verified, unpacked, resumed; and the captions of its evaluation."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import file_server
import pytest
from file_server import FileServer
from tiny import ROOT

from msd import download
from msd.cli.main import main
from msd.config import load
from msd.data.archive import LabelledImages
from msd.data.images import image_of
from msd.data.unpack import unpack_pictures
from msd.download import cache_folder
from msd.errors import DamagedFileError, DataError, DownloadError, StorageError
from msd.registry import UrlFile
from msd.store import Manifest
from msd.text import coco
from msd.text.coco import COCO14, Release, evaluation_captions, make_coco

IDS = [42, 73, 74, 133, 136]
CAPTIONS = [  # image, caption; neither in the order of images
    (133, "A loft bed with a dresser underneath it."),
    (42, "This wire metal rack holds several pairs of shoes and sandals"),
    (74, "A picture of a dog laying on the ground.\n"),
    (42, "A dog sleeping on a show rack in the shoes."),
    (73, " A motorcycle parked in a parking space  next to another motorcycle. "),
    (136, "Two giraffes in a room with people looking at them."),
    (133, "A bunk bed with a desk."),
]
LIST = (  # of four images
    "This wire metal rack holds several pairs of shoes and sandals\n"
    " A motorcycle parked in a parking space  next to another motorcycle. \n"
    "A picture of a dog laying on the ground. \n"
    "A loft bed with a dresser underneath it.\n"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def name_of(half: str, image: int) -> str:
    return f"COCO_{half}_{image:012d}.jpg"


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip file; of a name that ends in a slash, a folder."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return target.getvalue()


@dataclass
class Place:
    """A folder to make, the server that it is made from, and its files."""

    server: FileServer
    release: Release
    folder: Path
    pictures: dict[str, bytes]

    def make(self, release: Release | None = None, **options: object) -> Manifest:
        options.setdefault("progress", lambda half: lambda *_: None)
        return make_coco(self.folder, release or self.release, **options)  # type: ignore[arg-type]

    def serve(self, content: bytes) -> Release:
        """The same release with another file of pictures, whose digest is right."""
        self.server.files["/val2014.zip"] = content
        source, count = self.release.pictures["val2014"]
        changed = {"val2014": (replace(source, sha256=sha256(content)), count)}
        return replace(self.release, pictures={**self.release.pictures, **changed})

    @property
    def whole(self) -> bool:
        return (self.folder / "val2014").exists() or (self.folder / "manifest.json").exists()

    @property
    def zips(self) -> list[str]:
        return sorted(path.name for path in cache_folder().rglob("*.zip"))


@pytest.fixture
def place(real: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Five digits as JPEG files, with the names and captions of COCO's first five pictures."""
    monkeypatch.setenv("MSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MSD_MIRROR", raising=False)
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(download, "CHUNK", 500)
    contents = []
    for i in range(len(IDS)):
        image_of(real.images[i]).save(stream := io.BytesIO(), "JPEG")
        contents.append(stream.getvalue())
    with file_server.running() as server:
        sources = {}
        for half in ("val2014", "train2014"):
            pictures = {name_of(half, image): content for image, content in zip(IDS, contents, strict=True)}
            members = {f"{half}/": b""} | {f"{half}/{name}": content for name, content in reversed(pictures.items())}
            server.files[f"/{half}.zip"] = content = zipped(members)
            sources[half] = (UrlFile(f"{server.url}/{half}.zip", sha256(content)), len(IDS))
        annotations = json.dumps({"annotations": [{"image_id": image, "caption": text} for image, text in CAPTIONS]})
        members = {f"annotations/captions_{half}.json": annotations.encode() for half in sources}
        server.files["/annotations.zip"] = content = zipped(members | {"annotations/instances_val2014.json": b"{}"})
        release = Release(sources, UrlFile(f"{server.url}/annotations.zip", sha256(content)), 4, sha256(LIST.encode()))
        pictures = {name_of("val2014", image): content for image, content in zip(IDS, contents, strict=True)}
        yield Place(server, release, tmp_path / "coco14", pictures)


def test_pictures_captions_and_evaluation(place: Place) -> None:
    manifest = place.make()
    made = {path.name: path.read_bytes() for path in (place.folder / "val2014").iterdir()}
    assert made == place.pictures
    assert manifest.file("evaluation").read_text() == LIST
    assert manifest.file("evaluation") == place.folder / "eval-30k.txt"
    assert len(json.loads(manifest.file("captions-val2014").read_text())["annotations"]) == len(CAPTIONS)
    listing = "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(place.pictures.items()))
    assert manifest.results == {"val2014": {"images": 5, "sha256": sha256(listing.encode())}}
    assert place.zips == []  # no second copy
    assert not (place.folder / "train2014").exists()


def test_second_run_does_nothing(place: Place) -> None:
    first = place.make().path.stat()
    place.server.asked.clear()
    assert place.make().path.stat().st_mtime_ns == first.st_mtime_ns
    assert place.server.asked == []


def test_manifest_that_the_workflow_removed_is_made_without_a_download(place: Place) -> None:
    before = place.make()
    before.path.unlink()
    place.server.asked.clear()
    assert place.make().results == before.results
    assert place.server.asked == []


def test_what_was_lost_or_changed_is_fetched_again(place: Place) -> None:
    before = place.make()
    lost, changed = sorted((place.folder / "val2014").iterdir())[:2]
    lost.unlink()
    changed.write_bytes(b"")
    (place.folder / "captions_val2014.json").write_text("{}")
    (place.folder / "eval-30k.txt").write_text("")
    assert place.make().results == before.results
    assert {path.name: path.read_bytes() for path in lost.parent.iterdir()} == place.pictures
    assert before.file("evaluation").read_text() == LIST


def test_download_that_was_cut_goes_on(place: Place) -> None:
    place.server.cuts = [None, 1000, 0, 0, 0]  # annotations, then pictures
    with pytest.raises(DownloadError, match="kept"):
        place.make()
    assert not place.whole
    place.server.asked.clear()
    place.make()
    assert place.server.asked == ["bytes=1000-"]
    assert place.whole


@pytest.mark.parametrize("file", ["val2014.zip", "annotations.zip"])
def test_another_file_is_refused(place: Place, file: str) -> None:
    place.server.files[f"/{file}"] = zipped({"val2014/a.jpg": b"a"})
    with pytest.raises(DownloadError, match="not the expected one"):
        place.make()
    assert not place.whole


def test_damaged_zip_leaves_nothing_that_looks_whole(place: Place) -> None:
    good = place.server.files["/val2014.zip"]
    last = place.pictures[max(place.pictures)]
    at = good.index(last) + len(last) // 2
    release = place.serve(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    with pytest.raises(DamagedFileError, match="cannot be read"):
        place.make(release)
    assert not place.whole
    kept = {path.name: path.stat().st_mtime_ns for path in (place.folder / "val2014.part").iterdir()}
    assert len(kept) == len(IDS) - 1
    for path in cache_folder().rglob("val2014.zip"):
        path.unlink()
    place.make(place.serve(good))
    times = {path.name: path.stat().st_mtime_ns for path in (place.folder / "val2014").iterdir()}
    assert {name: times[name] for name in kept} == kept  # not unpacked twice
    assert len(times) == len(IDS)


BAD = {
    "above": {"../evil.jpg": b"evil"},
    "above the folder": {"val2014/../../evil.jpg": b"evil"},
    "absolute": {"/evil.jpg": b"evil"},
    "of Windows": {"val2014/..\\..\\evil.jpg": b"evil"},
    "in another folder": {"evil/evil.jpg": b"evil"},
    "below a folder": {"val2014/evil/evil.jpg": b"evil"},
    "hidden": {"val2014/.evil.jpg": b"evil"},
    "no picture": {"val2014/evil.sh": b"evil"},
    "one more": {"val2014/evil.jpg": b"evil"},
}


@pytest.mark.parametrize("members", BAD.values(), ids=BAD)
def test_members_that_do_not_belong_are_refused(place: Place, members: dict[str, bytes], tmp_path: Path) -> None:
    good = {f"val2014/{name}": content for name, content in place.pictures.items()}
    with pytest.raises(DamagedFileError):
        place.make(place.serve(zipped(good | members)))
    assert not place.whole
    assert not list(tmp_path.rglob("*evil*"))


def test_unpacking_that_was_killed_goes_on(place: Place) -> None:
    def kill(done: int, total: int, seen: dict[str, float]) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.make(progress=lambda half: kill)
    assert not place.whole
    part = place.folder / "val2014.part"
    kept, torn, other = sorted(part.iterdir())
    torn.write_bytes(torn.read_bytes()[:-1])  # as after a power cut
    other.write_bytes(bytes(other.stat().st_size))
    (part / f".{torn.name}.tmp").write_bytes(b"half a picture")
    time = kept.stat().st_mtime_ns
    place.server.asked.clear()
    place.make()
    assert place.server.asked == []  # the zip files were kept
    assert {path.name: path.read_bytes() for path in (place.folder / "val2014").iterdir()} == place.pictures
    assert (place.folder / "val2014" / kept.name).stat().st_mtime_ns == time


def test_pictures_that_a_user_unpacked_are_checked_in_place(place: Place) -> None:
    folder = place.folder / "val2014"
    folder.mkdir(parents=True)
    for name, content in list(place.pictures.items())[1:]:
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="between the pictures"):
        place.make()
    (folder / "notes.txt").unlink()
    place.make()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == place.pictures


def test_disk_that_fills_up_keeps_what_it_took(place: Place, tmp_path: Path) -> None:
    path, folder = tmp_path / "val2014.zip", tmp_path / "val2014"
    path.write_bytes(place.server.files["/val2014.zip"])
    sizes = sorted(map(len, place.pictures.values()))
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, hard))  # of one file, which is what can be had here
    try:
        with pytest.raises(StorageError, match="same command again"):
            unpack_pictures(path, folder, len(IDS), lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not folder.exists()
    assert len(unpack_pictures(path, folder, len(IDS), lambda *_: None)) == 64
    assert len(list(folder.iterdir())) == len(IDS)


def test_room_is_looked_for_before(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "val2014.zip").write_bytes(place.server.files["/val2014.zip"])
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="100 are free"):
        unpack_pictures(tmp_path / "val2014.zip", tmp_path / "val2014", len(IDS), lambda *_: None)
    assert list((tmp_path / "val2014.part").iterdir()) == []


def test_other_captions_than_published_are_refused(place: Place) -> None:
    other = LIST.replace("dog", "cat")
    release = replace(place.release, evaluation_sha256=sha256(other.encode()))
    with pytest.raises(DamagedFileError, match="DMD2's release") as error:
        place.make(release)
    assert str(place.folder / "eval-30k.txt") in error.value.todo
    assert not (place.folder / "manifest.json").exists()
    (place.folder / "eval-30k.txt").write_text(other)  # as the message says
    assert place.make(release).file("evaluation").read_text() == other


def test_command(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a mirror, whose files stay, and the training half; the digests of the real files would refuse ours."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, content in place.server.files.items():
        (mirror / name[1:]).write_bytes(content)
    monkeypatch.setenv("MSD_MIRROR", str(mirror))
    renamed = replace(COCO14.annotations, url="http://localhost:9/annotations.zip")
    monkeypatch.setattr(coco, "COCO14", replace(COCO14, annotations=renamed))
    assert main(["coco", str(place.folder)]) == DamagedFileError.exit_code
    monkeypatch.setattr(coco, "COCO14", place.release)
    assert main(["coco", str(place.folder), "--train"]) == 0
    assert place.server.asked == []
    assert len(list(mirror.iterdir())) == 3
    assert len(list((place.folder / "train2014").iterdir())) == len(IDS)
    assert main(["coco", str(place.folder)]) == 0  # the training half still belongs to it
    assert set(Manifest.read(place.folder / "manifest.json").results) == {"val2014", "train2014"}


def test_zips_stay_on_demand(place: Place) -> None:
    place.make(keep_zips=True)
    assert place.zips == ["annotations.zip", "val2014.zip"]


def test_list_of_the_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": [{"image_id": i, "caption": text} for i, text in CAPTIONS]}))
    assert evaluation_captions(path, 4) == LIST
    assert evaluation_captions(path, 1) == LIST.splitlines(keepends=True)[0]


def test_protocol_and_shared_list_are_the_release_s() -> None:
    override = "evaluation.protocol=protocols/fid_coco30k.yaml"
    protocol = load(ROOT / "params.yaml", (), [override]).evaluation.protocol
    assert protocol.captions is not None
    assert protocol.captions.sha256 == COCO14.evaluation_sha256
    assert protocol.images == COCO14.evaluation
