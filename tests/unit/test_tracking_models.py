"""Finished variants in MLflow's registry: one version of each bundle, and images from the student that owns a class."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_fixtures import rewrite
from tiny import CLASSES, IMAGE_SHAPE, network
from tracked import make_client, results

from msd.bundle.serve import Drawer
from msd.data.archive import to_uint8
from msd.draws import noise_of_images
from msd.networks.files import save_network
from msd.plan import Plan
from msd.store import Manifest, write_json
from msd.tracking import track
from msd.tracking.connection import MlflowClient

NAME = "tiny-pair"
PARTS = [[0, 2], [1, 3]]
ASK = """
import sys, mlflow, numpy, pandas
model = mlflow.pyfunc.load_model("models:/tiny-pair@current")
conditions = numpy.array([0, 1, 2, 3, 1])
first = model.predict(conditions)
assert (first == model.predict(pandas.DataFrame({"class": conditions}))).all()
numpy.savez(sys.argv[1], first, model.predict(conditions, params={"seed": 7}))
"""


@pytest.fixture
def plan(tracking_folder: Path) -> Plan:
    plan = results(variants={"pair": {"students": 2, "stages": ["dm"]}})
    rewrite(plan.variant("pair").bundle, image_shape=list(IMAGE_SHAPE))
    write_networks(plan, 0, 1)
    return plan


def write_networks(plan: Plan, *seeds: int) -> None:
    """A bundle of real, tiny networks."""
    bundle = Manifest.read(plan.variant("pair").bundle.manifest)
    for k, seed in enumerate(seeds):
        save_network(network(seed), bundle.path.parent / f"student-{k}.safetensors")
    files = {f"student-{k}": bundle.path.parent / f"student-{k}.safetensors" for k in range(len(seeds))}
    written = Manifest.write(bundle.path, kind="bundle", settings=bundle.settings, files=files, results=bundle.results)
    write_json(bundle.path, written.body | {"results": bundle.results | {"parts": PARTS}})


def versions(client: Any) -> list[str]:
    return sorted(str(v.version) for v in client.search_model_versions(f"name='{NAME}'"))


def test_a_fresh_process_gets_images_of_the_student_that_owns_the_class(plan: Plan, tmp_path: Path) -> None:
    track(plan)
    shutil.rmtree(plan.variant("pair").bundle.manifest.parent)  # the model stands on its own
    subprocess.run([sys.executable, "-c", ASK, "drawn.npz"], check=True)
    first, other = np.load("drawn.npz").values()
    assert first.shape == (5, *IMAGE_SHAPE)
    noise, students = noise_of_images(0, 0, 5, IMAGE_SHAPE), [network(0), network(1)]
    for i, c in enumerate([0, 1, 2, 3, 1]):
        drawn = [to_uint8(net.generate(noise[i : i + 1], torch.tensor([c])))[0].numpy() for net in students]
        right = next(k for k, part in enumerate(PARTS) if c in part)
        assert np.abs(first[i].astype(int) - drawn[right]).max() <= 1, "batches round otherwise"
        assert np.abs(first[i].astype(int) - drawn[1 - right]).max() > 1
    assert np.abs(first.astype(int) - other).max() > 1


def test_the_model_knows_what_goes_in_and_what_comes_out(plan: Plan) -> None:
    from mlflow.models import Model

    track(plan)
    (version,) = make_client().search_model_versions(f"name='{NAME}'")
    folder = make_client().get_logged_model(version.source.split("/")[-2]).artifact_location.removeprefix("file://")
    model = Model.load(folder)
    assert model.get_input_schema().inputs[0].shape == (-1,)
    assert model.get_output_schema().inputs[0].shape == (-1, *IMAGE_SHAPE)
    assert model.load_input_example(folder).tolist() == list(range(CLASSES))
    assert Drawer(folder).predict(model.load_input_example(folder)).shape == (4, *IMAGE_SHAPE)


def test_a_version_of_each_bundle_and_the_alias_on_the_one_that_is_there(plan: Plan) -> None:
    client = make_client()

    def current() -> str:
        return str(client.get_model_version_by_alias(NAME, "current").version)

    for _ in range(2):
        track(plan)
        assert versions(client) == ["1"]
        assert current() == "1"
    write_networks(plan, 0, 2)
    track(plan)
    assert versions(client) == ["1", "2"]
    assert current() == "2"
    write_networks(plan, 0, 1)
    track(plan)
    assert versions(client) == ["1", "2"]
    assert current() == "1"


def test_a_killed_upload_is_gone_on_with(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", killed)
        with pytest.raises(KeyboardInterrupt):
            track(plan)
    track(plan)
    client = make_client()
    assert versions(client) == ["1"]
    models = client.search_logged_models([client.get_experiment_by_name("tiny").experiment_id])
    assert [str(model.status) for model in models] == ["READY"]
