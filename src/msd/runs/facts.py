"""What rows of both kinds tell: origin, surroundings, links to weights."""

from __future__ import annotations

import calendar
import json
import time
from typing import Any

from msd.plan import Node, Plan
from msd.store import Manifest


def made(node: Node) -> Manifest | None:
    """The manifest of a piece of work; None: it is not there yet."""
    return Manifest.read(node.manifest) if node.manifest.exists() else None


def finished(manifest: Manifest) -> float:
    """Unix seconds."""
    return float(calendar.timegm(time.strptime(manifest.body["finished"], "%Y-%m-%dT%H:%M:%SZ")))


def surroundings(plan: Plan) -> dict[str, str | None]:
    """Which data, teacher and device: that on which latencies were measured, until then that which is asked for.

    A stage that has begun knows its own device.
    """
    data, teacher, latency = made(plan.data), made(plan.teacher), made(plan.latency)
    return {
        "data.sha256": data.results["sha256"] if data else None,
        "teacher.sha256": teacher.sha256("weights") if teacher else None,
        "device": latency.results["device"] if latency else plan.experiment.compute.device,
    }


def origin(manifest: Manifest | None) -> dict[str, str | None]:
    """Which code on which machine made it; MLflow knows the commit by this name."""
    if manifest is None:
        return {}
    code, machine = manifest.body["code"], manifest.body["machine"]
    return {
        "mlflow.source.git.commit": code["commit"],
        "msd.version": code["version"],
        "git.dirty": str(code["dirty"]),
        "machine.cpu": machine["cpu"],
        "machine.cores": str(machine["cores"]),
    }


def weights(manifest: Manifest) -> str:
    """Where its weights lie, with their digests, as JSON."""
    links = {
        name: {"path": str(manifest.file(name, verify=False)), "sha256": record["sha256"], "bytes": record["bytes"]}
        for name, record in manifest.body["files"].items()
        if record["path"].endswith(".safetensors")
    }
    return json.dumps(links, indent=1)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; nulls are left out."""
    keys: dict[str, Any] = {}
    for key, value in tree.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {key: value for key, value in keys.items() if value is not None}
