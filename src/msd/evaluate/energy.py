"""Joules that a device has used, where it tells: NVML on NVIDIA's GPUs, RAPL on CPUs.

Both count the whole device, other programs' work included. RAPL's counters are often for root only; then nothing is
reported. NVML is called in the driver's own library, so that no package is needed for it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class EnergyMeter:
    """Counters of energy.

    Attributes:
        source: what tells.
        read: joules that each counter shows.
        wraps: joules after which each starts again.
    """

    source: str
    read: Callable[[], list[float]]
    wraps: list[float]

    def between(self, before: list[float], after: list[float]) -> float:
        """Joules from one reading to a later one, over all counters; each may have started again once."""
        return sum((b - a) % wrap for a, b, wrap in zip(before, after, self.wraps, strict=True))


def energy_meter(device: torch.device) -> EnergyMeter | None:
    """The device's meter; None where it reports nothing."""
    return _nvml(device) if device.type == "cuda" else rapl(POWERCAP)


def rapl(folder: Path) -> EnergyMeter | None:
    """The counters of all CPU packages, AMD's have the same name; None where there are none or they cannot be read."""
    packages = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)

    def joules(name: str) -> list[float]:
        return [int((path / name).read_text()) / 1e6 for path in packages]

    try:
        joules("energy_uj")
        meter = EnergyMeter("RAPL", lambda: joules("energy_uj"), joules("max_energy_range_uj"))
    except (OSError, ValueError):
        return None
    return meter if packages else None


def _nvml(device: torch.device) -> EnergyMeter | None:
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()

    def read() -> int:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))

    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) or read():
        return None

    def joules() -> list[float]:
        read()
        return [millijoules.value / 1000]

    return EnergyMeter("NVML", joules, [math.inf])
