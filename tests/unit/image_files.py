"""The same labelled images in every format that others keep them in, written as those who defined the formats do."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

Images = np.ndarray  # (N, C, H, W) uint8
Labels = np.ndarray  # (N,) int64


def some_images(count: int = 24, channels: int = 3, side: int = 8, classes: int = 3) -> tuple[Images, Labels]:
    """Noise, sorted by class, so that every format keeps one order."""
    images = np.random.default_rng(count).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return images, np.arange(count) * classes // count


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    """One image (C, H, W) as a PNG file."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, "png")
    return buffer.getvalue()


def write_folder(path: Path, images: Images, labels: Labels) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = path / f"n{label:08d}" / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return path


def write_zip(path: Path, images: Images, labels: Labels | None) -> Path:
    """As EDM's dataset tool: stored, named by number, labels at the end."""
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
    entries = None if labels is None else [[n, int(c)] for n, c in zip(names, labels, strict=True)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(name, png(image))
        archive.writestr("dataset.json", json.dumps({"labels": entries}))
    return path


def write_edm_folder(path: Path, images: Images, labels: Labels) -> Path:
    with zipfile.ZipFile(write_zip(path.with_suffix(".zip"), images, labels)) as archive:
        archive.extractall(path)
    return path


def write_idx(path: Path, images: Images, labels: Labels, zipped: bool = True) -> Path:
    """As the MNIST files; grey only."""
    path.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels.astype(np.uint8))):
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        file = path / f"train-{name}-ubyte"
        if zipped:
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            file.write_bytes(content)
    return path


def write_lmdb(path: Path, images: Images, labels: Labels) -> Path:
    """As DMD2's create_imagenet_lmdb.py."""
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for name, array in (("images", images), ("labels", labels.astype(np.int64))):
            transaction.put(f"{name}_shape".encode(), " ".join(map(str, array.shape)).encode())
            for i, row in enumerate(array):
                transaction.put(f"{name}_{i}_data".encode(), row.tobytes())
    return path


def write_npz(path: Path, images: Images, labels: Labels) -> Path:
    np.savez(path, images=images, labels=labels)
    return path


def write_adm_npz(path: Path, images: Images, labels: Labels) -> Path:
    """As ADM's reference batches: channels last, arrays without names, compressed."""
    np.savez_compressed(path, images.transpose(0, 2, 3, 1), labels)
    return path


# name → (kind of source, what its path is called, its writer); these take colour and grey
FORMATS: dict[str, tuple[str, str, Callable[[Path, Images, Labels], Path]]] = {
    "folder": ("folder", "train", write_folder),
    "edm-zip": ("edm-zip", "train.zip", write_zip),
    "edm-folder": ("folder", "train", write_edm_folder),
    "lmdb": ("lmdb", "train_lmdb", write_lmdb),
    "npz": ("npz", "train.npz", write_npz),
    "adm-npz": ("npz", "train.npz", write_adm_npz),
}
