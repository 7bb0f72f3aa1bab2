"""Collect what a variant trained into its bundle's folder, and name it readably."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from msd.config import TeacherSampler
from msd.latent import factor_of
from msd.plan import Node, VariantPlan
from msd.store import Manifest, link, read_json, write_json, write_with
from msd.text.measured import measured_prompts
from msd.weights import NETWORK_FORMAT, fetch_weights, read_header

PROMPTS = "prompts"  # the file of those that a bundle of text to image is measured with


def write_bundle(variant: VariantPlan, out: Path) -> Manifest:
    """Collect a variant's networks, partition and training record into the folder ``out``.

    Raises:
        MissingFileError: a student is not trained yet.
    """
    node = variant.bundle
    files: dict[str, Path] = {}
    results: dict[str, Any]

    def take(name: str, source: Path, file: str = "") -> None:
        files[name] = out / (file or f"{name}{source.suffix}")
        write_with(files[name], lambda p: shutil.copyfile(source, p))

    inputs = {role: Manifest.read(n.manifest) for role, n in node.inputs.items()}
    if node.settings["model"] == "weights":
        path, _ = fetch_weights({"source": "file", **node.settings})
        header = read_header(path, NETWORK_FORMAT)
        take("student-0", path)
        unknown = dict.fromkeys(("images_per_student", "images_total", "training_seconds"))
        parts = [list(range(max(header.description["num_conditions"], 1)))]
        results = {"students": 1, "nfe": 1, "parameters_per_student": header.parameters, "parts": parts, **unknown}
    elif variant.partition is None:
        teacher = inputs["teacher"]
        take("teacher", teacher.file("weights"))
        results = {
            "students": 1,
            "nfe": TeacherSampler.model_validate(node.settings["sampler"]).nfe,
            "parameters_per_student": teacher.results["parameters"],
            **_teacher_effort(teacher),
        }
    else:
        take("partition", inputs["partition"].file("partition"))
        for k in range(len(variant.students)):
            take(f"student-{k}", _network(inputs[f"student-{k}"], node.settings.get("ema")))
        results = {
            "students": len(variant.students),
            "nfe": 1,
            "parameters_per_student": inputs["student-0"].results["parameters"],
            "parts": read_json(files["partition"])["parts"],
            **_effort(variant),
        }
    if "components" in inputs:
        components = inputs["components"]
        for name in components.body["files"]:
            take(f"components/{name}", components.file(name), f"components/{name}")
        for name in ("router.json", "router.safetensors"):
            if name in inputs.get("partition", components).body["files"]:
                take(name, inputs["partition"].file(name), name)
        prompts = measured_prompts(inputs["captions"], node.settings)
        files[PROMPTS] = out / f"{PROMPTS}.json"
        write_json(files[PROMPTS], prompts)
        results |= {"prompts": len(prompts), "pooling": node.settings["pooling"]}
        if "prompts" in node.settings:
            results.pop("parts", None)  # of the prompts of the training; those of the measurement are routed
        elif variant.partition is None:
            results["parts"] = [list(range(len(prompts)))]
    results["image_shape"] = _image_shape(files)
    return Manifest.write(
        out / "manifest.json",
        kind="bundle",
        settings={"variant": variant.name, **node.settings},
        inputs=node.input_paths,
        files=files,
        results=results,
    )


def _image_shape(files: dict[str, Path]) -> list[int]:
    """(C, H, W) of what the bundle draws, decoded."""
    network = files.get("teacher") or files["student-0"]
    channels, height, width = read_header(network, NETWORK_FORMAT).description["image_shape"]
    if (path := files.get("components/vae/config.json")) is not None:
        config = read_json(path)
        channels, factor = config["out_channels"], factor_of(config)
        height, width = height * factor, width * factor
    return [channels, height, width]


def _network(student: Manifest, ema: float | None) -> Path:
    """A student's weights: the first average of its recipe, or the one of this half-life.

    Raises:
        DamagedFileError: its last stage kept no such average.
    """
    return student.file("student" if ema is None else f"student_ema_{ema:.15g}")


def _effort(variant: VariantPlan) -> dict[str, Any]:
    """Images of student updates and seconds; a stage that students share (tsm) counts once in the totals."""
    chains = [[Manifest.read(node.manifest).results for node in student.stages] for student in variant.students]
    once: dict[Path, dict[str, Any]] = {}
    for student, chain in zip(variant.students, chains, strict=True):
        once |= {node.manifest: results for node, results in zip(student.stages, chain, strict=True)}
    return {
        "images_per_student": max(sum(r["nimg"] for r in chain) for chain in chains),
        "images_total": sum(r["nimg"] for r in once.values()),
        "training_seconds": round(sum(r["seconds"] for r in once.values()), 1),
    }


def _teacher_effort(teacher: Manifest) -> dict[str, Any]:
    """What is known of the teacher's own training."""
    known = {**teacher.results, **teacher.results["origin"]}  # trained here, or elsewhere with a record beside it
    return {
        "images_per_student": known.get("nimg"),
        "images_total": known.get("nimg"),
        "training_seconds": known.get("seconds"),
    }


def link_students(variant: VariantPlan, root: Path) -> None:
    """Readable links ``variants/<variant>/student-<k>`` and ``…/bundle`` to where the results lie."""
    folder = root / "variants" / variant.name
    targets: dict[str, Node] = {f"student-{k}": s.last for k, s in enumerate(variant.students)}
    for name, node in {**targets, "bundle": variant.bundle}.items():
        link(folder / name, node.manifest.parent)
