"""Export a trained network as a file to keep: weights and, beside them, the manifest of how they were made."""

from __future__ import annotations

import shutil
from pathlib import Path

from msd.errors import ConfigError
from msd.plan import Plan
from msd.store import Manifest, file_record, write_json, write_with


def export_network(plan: Plan, role: str, out: Path) -> Path:
    """Copy the teacher or a classifier of an experiment that trains it, and write ``out`` with the ending .json.

    Args:
        plan: of the experiment.
        role: teacher, features or judge.
        out: the safetensors file to write.

    Returns:
        The path of the manifest beside it.

    Raises:
        ConfigError: the experiment has no such network.
    """
    if (node := plan.networks.get(role)) is None:
        raise ConfigError(f"This experiment has no {role}.")
    trained = Manifest.read(node.manifest)
    write_with(out, lambda p: shutil.copyfile(trained.file("weights"), p))
    origin = {
        "weights": file_record(out, out.parent),
        "settings": trained.settings,
        "data_sha256": Manifest.read(plan.data.manifest).results["sha256"],
        "training_half": Manifest.read(plan.data.manifest).results["images"]["train"],
        **{key: value for key, value in trained.results.items() if key not in ("origin", "image_shape")},
        "machine": trained.body["machine"],
        "code": trained.body["code"],
    }
    if role == "teacher":
        scored = [v for v in plan.variants.values() if v.bundle.settings["model"] == "teacher"]
        if scored:
            evaluation = Manifest.read(scored[0].evaluation.manifest).results
            origin["evaluation"] = {key: evaluation[key] for key in ("metric", "metrics", "nfe")}
    path = out.with_suffix(".json")
    write_json(path, origin)
    return path
