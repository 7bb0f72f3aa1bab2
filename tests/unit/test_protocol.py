"""Protocols: files whose content is part of every result, changed by overlays, with a digest that tables go by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from test_evaluate import write_bundle
from tiny import ROOT, network

from msd.bundle.bundle import Bundle
from msd.config import Protocol, Sampler, TeacherSampler, load
from msd.draws import noise_of_images
from msd.errors import ConfigError, MissingFileError
from msd.evaluate.protocol import protocol_digest, summary
from msd.evaluate.sampling import asked_of_images, draw, quantised
from msd.plan import Plan
from msd.store import Manifest

PARAMS = ROOT / "params.yaml"
FILES = sorted((ROOT / "protocols").glob("*.yaml"))
CPU = torch.device("cpu")


def protocol_of(*overrides: str, files: tuple[Path, ...] = ()) -> Protocol:
    return load(PARAMS, files, overrides).evaluation.protocol


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_shipped_protocols(file: Path) -> None:
    protocol = protocol_of(f"evaluation.protocol=protocols/{file.name}")
    assert protocol.name == file.stem
    # what is stored gives the same protocol back
    assert Protocol.model_validate(protocol.model_dump(mode="json")) == protocol


def test_shipped_protocols_have_different_digests() -> None:
    digests = {protocol_digest(protocol_of(f"evaluation.protocol=protocols/{file.name}")) for file in FILES}
    assert len(digests) == len(FILES)


def test_an_overlay_changes_single_keys_of_a_file(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"evaluation": {"protocol": {"images": 100}}}))
    before, after = protocol_of(), protocol_of(files=(overlay,))
    assert after.model_copy(update={"images": before.images}) == before
    assert after.images == 100
    assert protocol_digest(after) != protocol_digest(before)


def test_another_file_replaces_the_whole_protocol() -> None:
    changed = "evaluation.protocol.neighbours=7"
    coco = "evaluation.protocol=protocols/fid_coco30k.yaml"
    assert protocol_of(changed, coco) == protocol_of(coco)
    assert protocol_of(coco, changed).neighbours == 7
    assert protocol_of(coco).resolution == 256


def test_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(MissingFileError) as missing:
        protocol_of("evaluation.protocol=protocols/none.yaml")
    assert missing.value.where == str(ROOT / "protocols/none.yaml")


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError) as refused:
        protocol_of("evaluation.protocol.quantization=round")
    assert "evaluation.protocol.quantization: unknown key; did you mean 'quantisation'?" in refused.value.why


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("evaluation.protocol.name=fid_digits", "no other"),
        ("evaluation.protocol.name=accuracy", "pattern"),
        ("evaluation.protocol.features={source: inception}", "no other"),
        ("evaluation.protocol={name: fid_digits, features: {source: inception, path: x}}", "belong together"),
        ("evaluation.protocol.clip={model: x}", "needs captions"),
        ("evaluation.protocol.reference.statistics={}", "a path or a url"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        protocol_of(setting)
    assert problem in refused.value.why


def test_every_key_is_part_of_the_digest() -> None:
    given = protocol_of("evaluation.protocol=protocols/fid_imagenet64.yaml")
    changes = {
        "resize": "clean",
        "resolution": 32,
        "quantisation": "round",
        "images": 10,
        "blocks": 2,
        "seed": 1,
        "labels": "random",
        "ema": 500.0,
        "neighbours": 4,
        "neighbour_images": 5,
        "kid_subset": 7,
    }
    digests = {protocol_digest(given.model_copy(update={key: value})) for key, value in changes.items()}
    assert len(digests | {protocol_digest(given)}) == len(changes) + 1


def test_what_is_measured_depends_on_the_protocol_and_training_does_not() -> None:
    before, after = (Plan(load(PARAMS, (), over)) for over in ([], ["evaluation.protocol.kid_subset=50"]))
    kinds = {node.kind for node in before if node.manifest not in {n.manifest for n in after}}
    assert kinds == {"evaluate", "breakdown", "floor"}


def test_images_of_another_average_are_another_bundle() -> None:
    before, after = (Plan(load(PARAMS, (), over)) for over in ([], ["evaluation.protocol.ema=500"]))
    changed = {node.name for node in after if node.kind == "bundle"} - {
        node.name for node in before if node.manifest in {n.manifest for n in after}
    }
    assert "msd4" in changed
    assert "teacher" not in changed


def test_quantisation() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1 / 255, 1.0, 2.0])
    assert quantised(x, "truncate").tolist() == [0, 0, 127, 128, 255, 255]
    assert quantised(x, "round").tolist() == [0, 0, 128, 128, 255, 255]
    # EDM's own undoes its own way from uint8 to float
    every = torch.arange(256)
    assert torch.equal(quantised(every / 127.5 - 1, "round").long(), every)


def test_random_labels_are_a_function_of_the_image(tmp_path: Path) -> None:
    protocol = protocol_of("evaluation.protocol.labels=random")
    whole = asked_of_images(protocol, 0, 300, 10)
    assert torch.equal(asked_of_images(protocol, 120, 60, 10), whole[120:180])
    counts = torch.bincount(whole, minlength=10)
    assert counts.min() >= 10
    assert counts.max() > counts.min()
    other = asked_of_images(protocol.model_copy(update={"seed": 1}), 0, 300, 10)
    assert not torch.equal(other, whole)


def test_blocks_draw_different_images_and_report_mean_and_minimum(tmp_path: Path) -> None:
    bundle = Bundle(write_bundle(tmp_path, [[0, 1, 2, 3]], [network(0)]))
    protocol = protocol_of()
    first, asked = draw(bundle, protocol, 0, 4, CPU)
    second, again = draw(bundle, protocol, 4, 4, CPU)
    assert torch.equal(asked, again)
    assert not torch.equal(first, second)
    assert torch.equal(noise_of_images(0, 4, 1, bundle.image_shape), noise_of_images(0, 0, 5, bundle.image_shape)[4:])
    found = summary([{"fid_x": 3.0, "recall": 0.5}, {"fid_x": 1.0, "recall": 0.7}], "fid_x")
    assert found == {"fid_x": 2.0, "recall": pytest.approx(0.6), "fid_x_minimum": 1.0}
    assert summary([{"fid_x": 3.0}], "fid_x") == {"fid_x": 3.0}


def test_a_stochastic_teacher_draws_the_same_whatever_the_batches(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, [[0, 1, 2, 3]], [network(0)])
    student = Bundle(folder).manifest
    sampler = {"num_steps": 4, "S_churn": 10, "S_noise": 1.003}
    Manifest.write(
        folder / "manifest.json",
        kind="bundle",
        settings={"variant": "teacher", "model": "teacher", "sampler": sampler},
        files={"teacher": student.file("student-0")},
        results=student.results | {"students": 1, "nfe": 7},
    )
    bundle, protocol = Bundle(folder), protocol_of()
    torch.manual_seed(0)
    whole = draw(bundle, protocol, 0, 6, CPU)[0].int()
    torch.manual_seed(1)
    parts = torch.cat([draw(bundle, protocol, first, 3, CPU)[0].int() for first in (0, 3)])
    assert (whole - parts).abs().max() <= 1  # another batch size may round a value otherwise
    assert (draw(bundle, protocol, 6, 6, CPU)[0].int() - whole).abs().max() > 1


def test_stochasticity_is_described_only_where_there_is_some() -> None:
    plain = protocol_of().model_dump(mode="json")["sampler"]
    assert set(plain) == {"num_steps", "sigma_min", "sigma_max", "rho"}
    churned = protocol_of("evaluation.protocol=protocols/fid_imagenet64.yaml").model_dump(mode="json")["sampler"]
    assert churned["S_churn"] == 40
    assert churned["S_max"] == 50


def test_guidance_is_described_and_counted_only_where_there_is_some() -> None:
    plain, guided = TeacherSampler(num_steps=4), TeacherSampler(num_steps=4, guidance=2.5)
    assert guided.model_dump(mode="json") == plain.model_dump(mode="json") | {"guidance": 2.5}
    assert (Sampler(num_steps=4).nfe, plain.nfe, guided.nfe) == (7, 7, 14)
    assert TeacherSampler.model_validate(guided.model_dump(mode="json")) == guided


def test_guidance_needs_a_teacher_that_saw_images_without_a_class() -> None:
    recipe, guidance = [ROOT / "experiments/fashion-mnist.yaml"], "evaluation.protocol.sampler.guidance=2"
    with pytest.raises(ConfigError) as refused:
        load(PARAMS, recipe, [guidance])
    assert refused.value.why.strip().startswith(
        "evaluation.protocol.sampler.guidance: the teacher has no label_dropout"
    )
    allowed = load(PARAMS, recipe, [guidance, "teacher.network.label_dropout=0.1"])
    assert allowed.evaluation.protocol.sampler.guidance == 2


def test_the_miniature_draws_teacher_and_students_with_one_guidance() -> None:
    experiment = load(PARAMS, [ROOT / "experiments/tiny-t2i.yaml"])
    sampler = experiment.evaluation.protocol.sampler
    assert sampler.guidance == experiment.recipe.dm.teacher_guidance == experiment.recipe.adm.teacher_guidance
    assert sampler.nfe == 2 * (2 * 9 - 1)


def test_a_protocol_alone_can_be_wrong() -> None:
    with pytest.raises(ValidationError, match="two names"):
        Protocol.model_validate(
            {
                "name": "fid_x",
                "images": 5,
                "features": {"source": "inception"},
                "second": {"name": "fid_x", "features": {"source": "inception"}},
            }
        )


def test_numbers_of_blocks_are_means() -> None:
    values = np.array([1.0, 2.0, 6.0])
    assert summary([{"fd_x": v} for v in values], "fd_x") == {"fd_x": values.mean(), "fd_x_minimum": values.min()}
