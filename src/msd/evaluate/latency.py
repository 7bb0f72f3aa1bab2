"""How long one image takes."""

from __future__ import annotations

import time

import numpy as np
import torch

from msd.bundle.bundle import Bundle
from msd.config import Compute
from msd.draws import noise_of_images
from msd.evaluate.sampling import conditions_of_images
from msd.plan import Node
from msd.store import Manifest
from msd.training.engine import resolve_device


def measure_latency(node: Node, compute: Compute) -> Manifest:
    """Milliseconds to one image, batch 1, the variants in turn so that a disturbance meets all alike."""
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    bundles = {name: Bundle(n.manifest.parent).to(device) for name, n in node.inputs.items()}
    repeats, warm_up = node.settings["repeats"], 2
    times: dict[str, list[float]] = {name: [] for name in bundles}
    for i in range(repeats + warm_up):
        for name, bundle in bundles.items():
            noise = noise_of_images(0, i, 1, bundle.image_shape).to(device)
            cond = conditions_of_images(i, 1, bundle.num_classes).to(device)
            began = time.perf_counter()
            bundle.generate(noise, cond).cpu()  # .cpu() waits for the device
            if i >= warm_up:
                times[name].append(1000 * (time.perf_counter() - began))
    return Manifest.write(
        node.manifest,
        kind="latency",
        settings=node.settings,
        inputs=node.input_paths,
        results={
            "variants": {
                name: {
                    "p50_ms": round(float(np.percentile(t, 50)), 3),
                    "p95_ms": round(float(np.percentile(t, 95)), 3),
                    "repeats": repeats,
                }
                for name, t in times.items()
            },
            "threads": compute.threads,
            "device": device.type,
            "batch_size": 1,
        },
    )
