"""A tiny autoencoder beside the full one: recorded, carried by bundles, timed and sampled with, and never measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers_folder import LENGTH, make_folder
from PIL import Image
from tiny import ROOT
from tiny_latent import LATENT_SHAPE, text_network

from msd.bundle.text import TextBundle, open_bundle
from msd.bundle.write import write_bundle
from msd.cli.main import main
from msd.config import Compute, load
from msd.data.archive import to_uint8
from msd.draws import noise_of_images
from msd.errors import ConfigError, MissingFileError
from msd.evaluate.latency import measure_latency
from msd.latent.tiny_decoder import open_tiny_decoder
from msd.networks import save_network
from msd.networks.latent import build_latent
from msd.plan import Node, Plan
from msd.report.cost import Costs, cells, headings, notes
from msd.store import Manifest
from msd.teachers.components import make_components

CPU = Compute(device="cpu")
PROMPTS = ["a dog", "a cat", "two bikes"]
IMAGE_SHAPE = (3, 2 * LATENT_SHAPE[1], 2 * LATENT_SHAPE[2])  # of the miniature's autoencoder
RECIPE = ROOT / "experiments/tiny-t2i.yaml"


def make_tiny(folder: Path, **changes: Any) -> Path:
    """An AutoencoderTiny of random weights that belongs to the miniature's autoencoder, or not."""
    settings: dict[str, Any] = {
        "encoder_block_out_channels": [4, 4],
        "decoder_block_out_channels": [4, 4],
        "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoencoderTiny(**settings | changes).save_pretrained(folder)
    return folder


def plan_with(folder: Path, *settings: str) -> Plan:
    components = f"text.components={{source: folder, path: {folder / 'diffusers'}}}"
    steps = "evaluation.protocol.sampler.num_steps=2"
    return Plan(load(ROOT / "params.yaml", [RECIPE], [components, steps, *settings]), folder / "results")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Components as their stage leaves them, and the teacher's bundle."""
    folder = tmp_path_factory.mktemp("experiment")
    make_folder(folder / "diffusers")
    tiny = make_tiny(folder / "tiny")
    plan = plan_with(folder, f"text.tiny_decoder={{path: {tiny}}}")
    assert plan.text is not None
    make_components(plan.text.components, CPU)
    Manifest.write(plan.text.captions.manifest, kind="captions", settings={}, results={"class_names": PROMPTS})
    weights = folder / "teacher.safetensors"
    save_network(build_latent(text_network(LENGTH), LATENT_SHAPE, 0), weights)
    results = {"parameters": 1, "origin": {}}
    Manifest.write(plan.teacher.manifest, kind="teacher", settings={}, files={"weights": weights}, results=results)
    write_bundle(plan.variants["teacher"], plan.variants["teacher"].bundle.manifest.parent)
    return plan


@pytest.fixture(scope="module")
def bundle(plan: Plan) -> TextBundle:
    found = open_bundle(plan.variants["teacher"].bundle.manifest.parent)
    assert isinstance(found, TextBundle)
    return found


def test_an_experiment_without_one_has_the_paths_that_it_had(plan: Plan, tmp_path: Path) -> None:
    without = plan_with(tmp_path)
    assert without.text is not None
    assert plan.text is not None
    assert "tiny_decoder" not in without.text.components.settings
    assert plan.text.components.settings["tiny_decoder"] == {"path": str(plan.root.parents[1] / "tiny")}
    assert without.text.captions.digest == plan.text.captions.digest


def test_a_bundle_carries_it(bundle: TextBundle, plan: Plan) -> None:
    names = [name for name in bundle.manifest.body["files"] if "tiny_vae" in name]
    assert names == ["components/tiny_vae/config.json", "components/tiny_vae/diffusion_pytorch_model.safetensors"]
    for name in names:
        assert bundle.manifest.file(name).parent == bundle.folder / "components/tiny_vae"


def test_it_draws_pictures_of_the_same_latents(bundle: TextBundle, plan: Plan) -> None:
    noise, cond = noise_of_images(0, 0, 3, bundle.noise_shape), torch.arange(3)
    drawn = bundle.draw(noise, cond)
    images = bundle.decoding(tiny=True)(drawn)
    assert images.shape == bundle.decode(drawn).shape == (3, *IMAGE_SHAPE)
    net = AutoencoderTiny.from_pretrained(plan.root.parents[1] / "tiny")
    expected = net.decode(drawn / net.config.scaling_factor).sample  # as diffusers' pipelines call it
    assert torch.equal(images, expected.detach())
    assert torch.equal(bundle.generate(noise, cond), bundle.decode(drawn))  # what is measured is by the full one
    assert not torch.equal(images, bundle.decode(drawn))


def test_sample_draws_by_it(bundle: TextBundle, tmp_path: Path) -> None:
    pictures = {}
    for decoder in ("full", "tiny"):
        out = tmp_path / f"{decoder}.png"
        asked = ["--bundle", str(bundle.folder), "--prompt", "a dog", "--n", "1", "--seed", "3"]
        assert main(["sample", *asked, "--decoder", decoder, "--out", str(out)]) == 0
        pictures[decoder] = np.asarray(Image.open(out))
    assert not np.array_equal(*pictures.values())
    images, _ = bundle.draw_prompts(["a dog"], noise_of_images(3, 0, 1, bundle.noise_shape), tiny=True)
    side = pictures["tiny"].shape[0] // IMAGE_SHAPE[1]  # the picture is enlarged by whole pixels
    assert np.array_equal(pictures["tiny"][::side, ::side], to_uint8(images)[0].permute(1, 2, 0).numpy())


def test_it_is_timed_beside_the_others(plan: Plan) -> None:
    node = plan.variants["teacher"].bundle
    latency = Node(
        "latency", "evaluation", "latency", {"repeats": 2, "throughput_batch": 2}, {"teacher": node}, plan.root
    )
    measured = measure_latency(latency, CPU).results["variants"]["teacher"]
    assert measured["undecoded_p50_ms"] > 0
    assert measured["tiny_p50_ms"] > 0


@pytest.mark.parametrize("tiny_ms", [12.0, None])
def test_the_report_shows_its_time_where_there_is_one(tiny_ms: float | None) -> None:
    numbers = ("images_per_second", "parameters_per_student", "parameters", "peak_memory_bytes", "flops_per_image")
    times = {"latency_p50_ms": 90.0, "latency_p95_ms": 95.0, "undecoded_p50_ms": 8.0, "tiny_p50_ms": tiny_ms}
    unknown = dict.fromkeys(("joules_per_image", "training_seconds", "images_total", "training_flops"))
    how = {"device": "cpu", "threads": 1, "throughput_batch": 4, "memory": "counted", "energy": None, "decoder": "Full"}
    costs = Costs([{"variant": "one", **times, **dict.fromkeys(numbers, 1.0), **unknown}], how)
    assert (
        ("12 ms" in cells(costs)[0]) == any("tiny" in heading for heading in headings(costs)) == (tiny_ms is not None)
    )
    assert any("No metric is of its images" in note for note in notes(costs)) == (tiny_ms is not None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"latent_channels": 8}, "latent channels: 8 for 4"),
        ({"out_channels": 1}, "channels of an image: 1 for 3"),
        ({"decoder_block_out_channels": [4, 4, 4], "num_decoder_blocks": [1, 1, 1]}, "a latent's side: 4 for 2"),
        ({"scaling_factor": 0.18215}, "scaling factor: 0.18215 for 1"),
    ],
)
def test_one_of_another_autoencoder_is_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "diffusers")
    folder = make_tiny(tmp_path / "tiny", **changes)
    plan = plan_with(tmp_path, f"text.tiny_decoder={{path: {folder}}}")
    assert plan.text is not None
    with pytest.raises(ConfigError, match="does not belong to the autoencoder") as refused:
        make_components(plan.text.components, CPU)
    assert expected in refused.value.why
    assert not plan.text.components.manifest.exists()


def test_a_file_that_is_missing_is_named(plan: Plan, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingFileError) as refused:
        open_tiny_decoder(folder, plan.root.parents[1] / "diffusers/vae")
    assert refused.value.where.endswith("tiny/diffusion_pytorch_model.safetensors")


def test_students_without_one_say_so(bundle: TextBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    files = bundle.manifest.body["files"]
    kept = {name: record for name, record in files.items() if "tiny_vae" not in name}
    monkeypatch.setitem(bundle.manifest.body, "files", kept)
    with pytest.raises(ConfigError, match="have no tiny decoder"):
        bundle.draw_prompts(["a dog"], noise_of_images(0, 0, 1, bundle.noise_shape), tiny=True)
