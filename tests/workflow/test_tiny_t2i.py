"""Text to image in miniature, every stage with the real parts: digits, captions, diffusers' UNet and autoencoder."""

from __future__ import annotations

import subprocess

import pandas as pd
import pytest
import torch
from PIL import Image
from working_copy import COMMANDS, WorkingCopy

from msd.bundle.text import TextBundle
from msd.config import load
from msd.draws import noise_of_images
from msd.plan import Plan
from msd.store import Manifest

OVERLAYS = ["experiments/tiny-t2i.yaml", "experiments/overlays/tiny-t2i-smoke.yaml"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(copy: WorkingCopy) -> WorkingCopy:
    copy.run("all", "--configfile", *OVERLAYS, configfile=None)
    return copy


@pytest.fixture(scope="module")
def plan(tiny: WorkingCopy) -> Plan:
    overlays = [tiny.folder / name for name in OVERLAYS]
    return Plan(load(tiny.folder / "params.yaml", overlays), tiny.folder / "results")


def msd(tiny: WorkingCopy, *arguments: str) -> str:
    command = [str(COMMANDS / "msd"), *arguments]
    done = subprocess.run(command, cwd=tiny.folder, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_node_left_a_whole_manifest(plan: Plan) -> None:
    for node in plan:
        manifest = Manifest.read(node.manifest)
        for name in manifest.body["files"]:
            assert manifest.file(name).exists()


def test_what_is_drawn_is_what_the_prompt_says(plan: Plan) -> None:
    """Better than the control with shuffled prompts by more than chance: 400 images, a standard error of 0.02."""
    for name in ("teacher", "msd2"):
        found = Manifest.read(plan.variants[name].evaluation.manifest).results
        assert found["metrics"]["asked_class_share"] > found["shuffled_prompts_share"] + 0.05, name


def test_the_report_tells_the_control(tiny: WorkingCopy, plan: Plan) -> None:
    assert list(pd.read_csv(tiny.results("tiny-t2i-smoke") / "ablation.csv").variant) == list(plan.variants)
    assert "Control, the same images judged by the prompts of other classes" in (
        tiny.results("tiny-t2i-smoke") / "ablation.md"
    ).read_text(encoding="utf-8")


def test_prompts_are_split_evenly_and_all_are_owned(plan: Plan) -> None:
    partition = plan.variants["msd2"].partition
    assert partition is not None
    parts = Manifest.read(partition.manifest).results["parts"]
    assert [len(part) for part in parts] == [20, 20]
    assert sorted(row for part in parts for row in part) == list(range(40))


def test_an_unseen_prompt_goes_to_one_student(tiny: WorkingCopy, plan: Plan) -> None:
    folder = plan.variants["msd2"].bundle.manifest.parent
    for prompt in ("", "🦒 seven" * 40):
        said = msd(tiny, "sample", "--bundle", str(folder), "--prompt", prompt, "--n", "2", "--out", "two.png")
        assert "2 images" in said
        assert "by student " in said
    with Image.open(tiny.folder / "two.png") as picture:
        assert picture.size[0] >= 56


def test_a_student_is_a_diffusers_pipeline(tiny: WorkingCopy, plan: Plan) -> None:
    from diffusers import StableDiffusionPipeline

    bundle = TextBundle(plan.variants["msd2"].bundle.manifest.parent)
    msd(tiny, "pipeline", str(bundle.folder), "pipelines")
    noise = noise_of_images(0, 0, 1, bundle.noise_shape)
    images, (owner,) = bundle.draw_prompts(["the digit four"], noise)
    folder = tiny.folder / "pipelines" / f"student-{owner}"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    drawn = pipeline(
        "the digit four",
        num_inference_steps=1,
        guidance_scale=0,
        latents=noise,
        output_type="pt",
        height=32,
        width=32,  # of 28×28: it asks for eights only
    ).images
    assert torch.allclose(drawn * 2 - 1, images.clamp(-1, 1), atol=1e-4)
