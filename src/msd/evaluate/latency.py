"""What one image costs: time, throughput, operations, memory, energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msd.bundle.bundle import Bundle
from msd.bundle.text import open_bundle
from msd.config import Compute
from msd.draws import noise_of_images
from msd.evaluate.energy import EnergyMeter, energy_meter
from msd.evaluate.sampling import conditions_of_images
from msd.plan import Node
from msd.store import Manifest
from msd.training.engine import resolve_device
from msd.training.ledger import Ledger

WARM_UP = 2  # calls that are not counted
ROUNDS, ROUND_SECONDS = 3, 0.3  # of throughput: short ones in turn, each at least so long that a meter sees it


def measure_latency(node: Node, compute: Compute) -> Manifest:
    """Milliseconds to one image, then images per second, the variants in turn so that a disturbance meets all alike."""
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    bundles = {name: open_bundle(n.manifest.parent).to(device) for name, n in node.inputs.items()}
    repeats, batch, meter = node.settings["repeats"], node.settings["throughput_batch"], energy_meter(device)
    times = _one_at_a_time(bundles, repeats, device, lambda bundle: bundle.generate)
    decoding = {name: bundle for name, bundle in bundles.items() if bundle.decoder}
    undecoded = _one_at_a_time(decoding, repeats, device, lambda bundle: bundle.draw)
    quick = {name: bundle for name, bundle in bundles.items() if bundle.has_tiny_decoder}
    tiny = _one_at_a_time(quick, repeats, device, lambda bundle: partial(_by_tiny_decoder, bundle))
    speeds = _many_at_once(bundles, batch, device, meter)
    return Manifest.write(
        node.manifest,
        kind="latency",
        settings=node.settings,
        inputs=node.input_paths,
        results={
            "variants": {
                name: {
                    "p50_ms": _median(times[name]),
                    "p95_ms": round(float(np.percentile(times[name], 95)), 3),
                    "repeats": repeats,
                    **({"undecoded_p50_ms": _median(undecoded[name])} if bundle.decoder else {}),
                    **({"tiny_p50_ms": _median(tiny[name])} if bundle.has_tiny_decoder else {}),
                    **speeds[name],
                    **_work(bundle, batch, device),
                    "parameters": sum(net.num_parameters for net in bundle.networks),
                }
                for name, bundle in bundles.items()
            },
            "threads": compute.threads,
            "device": device.type,
            "batch_size": 1,
            "throughput_batch": batch,
            "memory": "counted" if device.type == "cpu" else "the allocator's",
            "energy": meter.source if meter else None,
            "decoder": next((bundle.decoder for bundle in decoding.values()), None),
        },
    )


def _by_tiny_decoder(bundle: Bundle, noise: Tensor, cond: Tensor) -> Tensor:
    return bundle.decoding(tiny=True)(bundle.draw(noise, cond))


def _median(milliseconds: list[float]) -> float:
    return round(float(np.percentile(milliseconds, 50)), 3)


def _one_at_a_time(
    bundles: Mapping[str, Bundle],
    repeats: int,
    device: torch.device,
    how: Callable[[Bundle], Callable[[Tensor, Tensor], Tensor]],
) -> dict[str, list[float]]:
    """Milliseconds of single images, drawn by a method of each bundle."""
    times: dict[str, list[float]] = {name: [] for name in bundles}
    for i in range(repeats + WARM_UP):
        for name, bundle in bundles.items():
            noise, cond = _batch(bundle, i, 1, device)
            bundle.conditions(cond).cpu()  # a prompt is encoded before the clock starts; .cpu() waits for it
            began = time.perf_counter()
            how(bundle)(noise, cond).cpu()  # .cpu() waits for the device
            if i >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - began))
    return times


def _many_at_once(
    bundles: Mapping[str, Bundle], batch: int, device: torch.device, meter: EnergyMeter | None
) -> dict[str, dict[str, float | None]]:
    """Images per second and joules per image; a batch holds the conditions in turn."""
    images, seconds, joules = (dict.fromkeys(bundles, 0.0) for _ in range(3))
    for i in range(ROUNDS):
        for name, bundle in bundles.items():
            noise, cond = _batch(bundle, 0, batch, device)
            if i == 0:
                bundle.generate(noise, cond).cpu()
            before, began = meter.read() if meter else [], time.perf_counter()
            while (took := time.perf_counter() - began) < ROUND_SECONDS:
                bundle.generate(noise, cond).cpu()
                images[name] += batch
            seconds[name] += took
            joules[name] += meter.between(before, meter.read()) if meter else 0
    return {
        name: {
            "images_per_second": round(images[name] / seconds[name], 3),
            "joules_per_image": joules[name] / images[name] if meter else None,
        }
        for name in bundles
    }


def _work(bundle: Bundle, batch: int, device: torch.device) -> dict[str, Any]:
    """FLOPs of an image, and the most bytes that drawing a batch takes: all networks of the bundle and its tensors.

    A CPU has no allocator to ask: there the tensors are counted, without what a kernel needs inside.
    """
    noise, cond = _batch(bundle, 0, batch, device)
    own = [tensor for net in (*bundle.networks, *bundle.around) for tensor in (*net.parameters(), *net.buffers())]
    ledger = Ledger()
    for tensor in own:
        ledger.see(tensor)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    weights = ledger.peak
    with ledger:
        bundle.generate(noise, cond)
    taken = torch.cuda.max_memory_allocated(device) - before + weights if device.type == "cuda" else ledger.peak
    return {"flops_per_image": ledger.flops // batch, "peak_memory_bytes": taken}


def _batch(bundle: Bundle, first: int, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    noise = noise_of_images(0, first, count, bundle.noise_shape)
    return noise.to(device), conditions_of_images(first, count, bundle.num_classes).to(device)
