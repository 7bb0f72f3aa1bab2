"""A bundle of text to image whose prompts were never in training: the router decides, on any device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers_folder import LENGTH, make_folder
from tiny_latent import LATENT_SHAPE, text_network

from msd.bundle.text import COMPONENTS, TextBundle, open_bundle
from msd.bundle.write import PROMPTS
from msd.config import Hashed
from msd.draws import noise_of_images
from msd.errors import ConfigError
from msd.networks.files import save_network
from msd.networks.latent import build_latent
from msd.partition.text_router import TextRouter
from msd.store import Manifest, write_json

ASKED = ["A dog on a beach.", "", "🦒" * 30, "A cat next to a dog", "A dog on a beach."]
HAS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, HAS_CUDA])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students that a hash of the prompt chooses between."""
    out = tmp_path_factory.mktemp("bundle")
    make_folder(out / COMPONENTS)
    files = {
        f"{COMPONENTS}/{p.relative_to(out / COMPONENTS)}": p for p in (out / COMPONENTS).glob("*/*") if p.is_file()
    }
    for k in range(2):
        files[f"student-{k}"] = out / f"student-{k}.safetensors"
        save_network(build_latent(text_network(LENGTH), LATENT_SHAPE, k), files[f"student-{k}"])
    TextRouter(Hashed(kind="hash", seed=1), 2, {}, None).save(out)
    files |= {name: out / name for name in ("router.json", "router.safetensors")}
    files[PROMPTS] = out / "prompts.json"
    write_json(files[PROMPTS], ASKED)
    results = {"students": 2, "nfe": 1, "prompts": len(ASKED), "pooling": "prompt"}
    Manifest.write(out / "manifest.json", kind="bundle", settings={"prompts": len(ASKED)}, files=files, results=results)
    return out


def opened(folder: Path, device: str) -> TextBundle:
    bundle = open_bundle(folder).to(torch.device(device))
    assert isinstance(bundle, TextBundle)
    return bundle


@pytest.mark.parametrize("device", DEVICES)
def test_prompts_by_number_go_where_their_text_goes(folder: Path, device: str) -> None:
    bundle, router = opened(folder, device), TextRouter.load(folder)
    cond = torch.arange(len(ASKED), device=device)
    owners = bundle.owners(cond)
    assert owners.device.type == device
    assert owners.tolist() == router(None, ASKED).tolist()
    assert set(owners.tolist()) == {0, 1}
    noise = noise_of_images(0, 0, len(ASKED), bundle.noise_shape).to(device)
    by_number = bundle.generate(noise, cond)
    by_text, named = bundle.draw_prompts(ASKED, noise)
    assert named == owners.tolist()
    assert torch.equal(by_number, by_text)
    assert by_number.shape == (len(ASKED), *bundle.image_shape)
    alone = bundle.generate(noise[3:4], cond[3:4])
    assert torch.allclose(alone, by_number[3:4], atol=1e-4)
    for k in (0, 1):
        mine = owners == k
        assert torch.equal(bundle.generate_by(k, noise, cond)[mine], by_number[mine])


def test_a_number_without_a_prompt_is_one_error(folder: Path) -> None:
    for number in (-1, len(ASKED)):
        with pytest.raises(ConfigError, match="numbers 0…4"):
            opened(folder, "cpu").owners(torch.tensor([0, number]))
