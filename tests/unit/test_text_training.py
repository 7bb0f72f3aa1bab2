"""What text-conditional stages train on: archives of latents and embeddings, dropped prompts, and job identities."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ADAM, tensors
from tiny_latent import TEXT_LENGTH, WIDTH, Latents, latent, text_network

from msd import config
from msd.config.text import TinyAutoencoder
from msd.data.archive import LabelledImages
from msd.draws import Draws
from msd.errors import ConfigError
from msd.latent.archive import CaptionedLatents, EncodedImages, Prompts, open_latents, write_latents
from msd.latent.autoencoder import Autoencoder, build_autoencoder
from msd.networks.latent import build_latent
from msd.store import Manifest, write_text
from msd.teachers.step import TeacherStep
from msd.text.archive import open_prompts, write_prompts
from msd.text.embeddings import Embeddings, embed_prompts, open_embeddings
from msd.text.encoder import open_encoder
from msd.text.tiny import make_tiny_encoder
from msd.training.inputs import Inputs

PROMPTS = ["a cat", "a dog", "an owl", "a newt", "a frog"]
IMAGES = 11
TEACHER = {"images": 16, "batch_size": 8, "optimizer": ADAM}


def embeddings(folder: Path, seed: int = 0) -> Embeddings:
    """Of the prompts, by an encoder with weights of its own."""
    write_text(folder / "prompts.txt", "\n".join(PROMPTS))
    make_tiny_encoder(PROMPTS, folder / "encoder", vocabulary=520, length=TEXT_LENGTH, width=WIDTH, layers=1, seed=seed)
    archive = open_prompts(write_prompts(folder / "prompts.txt", folder / "prompts"))
    return open_embeddings(
        embed_prompts(archive, open_encoder(folder / "encoder", "cpu"), folder / "out", shard_size=2)
    )


def captioned(folder: Path, states: Embeddings) -> Manifest:
    """Latents of grey images, in shards of four, with captions in turn."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, 1, 8, 8), dtype=np.uint8)
    data = LabelledImages(images, np.arange(IMAGES) % 5, 5, "images")
    net = build_autoencoder(
        TinyAutoencoder.model_validate({"channels": [4, 4], "groups": 2, "training": TEACHER}), channels=1
    )
    shards = write_latents(EncodedImages(data, Autoencoder(net)), "of images and autoencoder", folder)
    np.save(folder / "captions.npy", data.labels)
    files = {**shards.files, "captions": folder / "captions.npy"}
    path = folder / "manifest.json"
    return Manifest.write(path, kind="latents", settings={}, files=files, results={"sha256": "latents"})


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionedLatents:
    monkeypatch.setattr("msd.latent.archive.SHARD", 4)
    (tmp_path / "latents").mkdir()
    states = embeddings(tmp_path)
    return open_latents(captioned(tmp_path / "latents", states), states)


def test_rows_are_the_same_over_the_borders_of_shards(opened: CaptionedLatents) -> None:
    indices = torch.tensor([10, 3, 4, 8, 0, 7])
    together, hidden = opened.batch(indices)
    for row, i in enumerate(indices):
        one, said = opened.batch(i[None])
        assert torch.equal(together[row], one[0])
        assert torch.equal(hidden[row], said[0])
        assert torch.equal(said, opened.embeddings.hidden(i[None] % 5))
    assert together.shape == (6, *opened.image_shape)
    assert len(torch.unique(together.flatten(1), dim=0)) == 6


def test_a_part_knows_its_images_and_prompts(opened: CaptionedLatents) -> None:
    assert opened.indices_of([1, 4]).tolist() == [1, 4, 6, 9]
    part = Prompts(opened.embeddings, torch.tensor([1, 4]))
    assert len(part) == 2
    assert torch.equal(part[torch.tensor([1, 0])], opened.embeddings.hidden(torch.tensor([4, 1])))


def test_another_text_encoder_makes_other_data(tmp_path: Path) -> None:
    """The digest of the data decides a job's identity: a teacher of other hidden states is another teacher."""
    digests = set()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        (folder / "latents").mkdir(parents=True)
        states = embeddings(folder, seed)
        digests.add(open_latents(captioned(folder / "latents", states), states).sha256)
    assert len(digests) == 2


def test_a_teacher_of_another_encoder_is_refused(tmp_path: Path) -> None:
    states = embeddings(tmp_path)
    inputs = Inputs({"embeddings": states.manifest})
    origin = {"converted_from": {"text_encoder_sha256": "0" * 64}}
    path = tmp_path / "teacher.json"
    known = Manifest.write(path, kind="teacher", settings={}, results={"origin": origin})
    with pytest.raises(ConfigError, match="do not belong together"):
        inputs.check_teacher(latent(), known)
    unknown = Manifest.write(path, kind="teacher", settings={}, results={"origin": {}})
    inputs.check_teacher(latent(), unknown)
    with pytest.raises(ConfigError, match="do not belong together"):
        inputs.check_teacher(build_latent(text_network(text_length=5), (4, 8, 8), seed=0), unknown)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropped_prompts_are_the_empty_one(share: float) -> None:
    """With every prompt dropped, what the prompts say makes no difference, and with none it does."""
    settings = config.TeacherTraining.model_validate(TEACHER)

    def after(shift: float) -> dict[str, torch.Tensor]:
        data = Latents()
        data._text = data._text + shift
        step = TeacherStep(latent(1), data, settings, Draws(0), share)
        step(0)
        return tensors(step.networks()["net"].state_dict())

    one, other = after(0.0), after(3.0)
    assert all(torch.equal(one[name], other[name]) for name in one) == (share == 1.0)


def test_jobs_of_classes_do_not_import_diffusers() -> None:
    """It takes seconds, of every job."""
    code = "import sys, msd.distill.run, msd.evaluate.run, msd.teachers.train, msd.bundle.serve; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"diffusers", "transformers"} & set(found)
