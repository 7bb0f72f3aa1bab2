"""What an image costs: counted FLOPs and bytes are those of the networks; energy is told only where a device tells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from test_evaluate import write_bundle
from tiny import CLASSES, IMAGE_SHAPE, network

from msd import config
from msd.evaluate.energy import EnergyMeter, rapl
from msd.evaluate.latency import measure_latency
from msd.networks.summary import network_cost
from msd.plan import Node
from msd.store import Manifest

SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "pixel_unshuffle": 2}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The costs of one student, and of two of the same size."""
    folder = tmp_path_factory.mktemp("results")
    inputs = {name: Node("bundle", "bundles", name, {}, {}, folder) for name in ("one", "two")}
    write_bundle(inputs["one"].manifest.parent, [[0, 1, 2, 3]], [network(0)])
    write_bundle(inputs["two"].manifest.parent, [[0, 1], [2, 3]], [network(0), network(1)])
    node = Node("latency", "evaluation", "latency", {"repeats": 3, "throughput_batch": 8}, inputs, folder)
    return measure_latency(node, config.Compute(device="cpu"))


def test_work_is_the_networks(measured: Manifest) -> None:
    one, two = (measured.results["variants"][name] for name in ("one", "two"))
    cost = network_cost(config.Network.model_validate(SMALL), IMAGE_SHAPE, CLASSES)
    assert one["flops_per_image"] == two["flops_per_image"] == cost.flops
    assert (one["parameters"], two["parameters"]) == (cost.parameters, 2 * cost.parameters)
    image_bytes = 8 * 4 * math.prod(IMAGE_SHAPE)
    for row, networks in ((one, 1), (two, 2)):
        assert row["peak_memory_bytes"] > 4 * networks * cost.parameters + image_bytes
        assert row["peak_memory_bytes"] < 4 * networks * cost.parameters + 8 * cost.activation_bytes + 20 * image_bytes
    weights = 4 * cost.parameters
    # one more network, but each draws half of the batch
    assert one["peak_memory_bytes"] - weights > two["peak_memory_bytes"] - 2 * weights


def test_times_are_told_with_their_batches(measured: Manifest) -> None:
    results = measured.results
    assert (results["batch_size"], results["throughput_batch"], results["decoder"]) == (1, 8, None)
    for row in results["variants"].values():
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["images_per_second"] > 0
        assert (row["joules_per_image"] is None) == (results["energy"] is None)


def write_counters(folder: Path, *joules: float, wrap: float = 1000) -> None:
    """RAPL's files: one folder per package, and one below it that must not count twice."""
    for i, value in enumerate(joules):
        for name in (f"intel-rapl:{i}", f"intel-rapl:{i}:0"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "energy_uj").write_text(f"{round(1e6 * value)}\n")
            (folder / name / "max_energy_range_uj").write_text(f"{round(1e6 * wrap)}\n")


def test_rapl_sums_packages_and_survives_a_counter_that_starts_again(tmp_path: Path) -> None:
    write_counters(tmp_path, 5, 990)
    meter = rapl(tmp_path)
    assert meter is not None
    before = meter.read()
    assert before == [5, 990]
    write_counters(tmp_path, 7.5, 10)
    assert meter.between(before, meter.read()) == pytest.approx(2.5 + 20)


def test_a_counter_without_end_is_a_difference() -> None:
    assert EnergyMeter("NVML", list, [math.inf]).between([10], [12.5]) == 2.5


def test_without_counters_nothing_is_told(tmp_path: Path) -> None:
    assert rapl(tmp_path / "missing") is None
    assert rapl(tmp_path) is None
    write_counters(tmp_path, 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
    assert rapl(tmp_path) is None
