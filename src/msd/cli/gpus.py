"""GPUs to plan for: memory and peak speed, from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        model: how its name begins in what the driver reports, after the maker's.
        memory_gib: of one.
        bfloat16, float32: dense peak in TFLOP/s, None: unknown; float32's is TF32's where there is one, in which
            torch computes convolutions unless it is told otherwise.
    """

    model: str
    memory_gib: float
    bfloat16: float | None
    float32: float | None


# NVIDIA's data sheets (A100, H100 SXM, H200 SXM, L40S, V100 SXM2) and its Ada white paper (RTX 4090, accumulating in
# float32). Where a sheet gives numbers with sparsity only, half of that. The V100 has neither bfloat16 nor TF32 units:
# its plain float32 stands for both.
GPUS = {
    "a100-40": Gpu("A100", 40, 312, 156),
    "a100-80": Gpu("A100", 80, 312, 156),
    "h100": Gpu("H100", 80, 989.4, 494.7),
    "h200": Gpu("H200", 141, 989.4, 494.7),
    "l40s": Gpu("L40S", 48, 362, 183),
    "rtx4090": Gpu("RTX 4090", 24, 165.2, 82.6),
    "v100-32": Gpu("V100", 32, 15.7, 15.7),
}


def gpu_called(name: str, memory_bytes: int) -> Gpu:
    """The GPU that a driver reports: its own memory, and the speed of the nearest in the table, if there is one."""
    memory = memory_bytes / GIB
    alike = [gpu for gpu in GPUS.values() if gpu.model in name]
    if not alike:
        return Gpu(name, memory, None, None)
    nearest = min(alike, key=lambda gpu: abs(gpu.memory_gib - memory))
    return Gpu(name, memory, nearest.bfloat16, nearest.float32)
