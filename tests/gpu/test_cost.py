"""On a GPU: its energy is told, and an image's memory is the allocator's. Skipped without CUDA."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_evaluate import write_bundle
from tiny import network

from msd.bundle.bundle import Bundle
from msd.config import Compute
from msd.evaluate.energy import energy_meter
from msd.evaluate.latency import measure_latency
from msd.plan import Node

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_gpu_tells_its_energy() -> None:
    device = torch.device("cuda")
    meter = energy_meter(device)
    assert meter is not None
    before, x = meter.read(), torch.randn(4096, 4096, device=device)
    for _ in range(500):
        x = x @ x / x.norm()
    torch.cuda.synchronize()
    assert meter.between(before, meter.read()) > 1


def test_a_gpus_memory_is_the_allocators(tmp_path: Path) -> None:
    inputs = {"one": Node("bundle", "bundles", "one", {}, {}, tmp_path)}
    write_bundle(inputs["one"].manifest.parent, [[0, 1, 2, 3]], [network(0)])
    node = Node("latency", "evaluation", "latency", {"repeats": 1, "throughput_batch": 8}, inputs, tmp_path)
    results = measure_latency(node, Compute(device="cuda")).results
    assert results["memory"] == "the allocator's"
    weights = 4 * Bundle(inputs["one"].manifest.parent).networks[0].num_parameters
    assert results["variants"]["one"]["peak_memory_bytes"] > weights
