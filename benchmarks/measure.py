"""One measurement in a process of its own: ``python benchmarks/measure.py TASK RESULT``, two JSON files.

``train_step.py`` writes the tasks: what the device can do at most, the FLOPs of updates, or the seconds of one row.
"""

from __future__ import annotations

import copy
import gc
import resource
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from rows import PRESETS, ROOT, experiment_of, stage_settings
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from msd.config import Adm, Compute, Dm, FileSource, KnownSource
from msd.data.archive import LabelledImages
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep, Pairs
from msd.draws import Draws
from msd.networks import Backbone, load_network
from msd.networks.discriminator import Discriminator
from msd.networks.files import build_network
from msd.networks.levers import prepare
from msd.networks.published import published_network, published_text_network
from msd.registry import KNOWN
from msd.store import machine, read_json, write_json, write_text
from msd.training.engine import resolve_device

if TYPE_CHECKING:
    from msd.networks.latent import LatentDenoiser

IMAGES = 2000  # of the random data set
META = torch.device("meta")  # knows shapes and holds no numbers


def describe_device(task: dict[str, Any]) -> dict[str, Any]:
    """The device, and its rate at a large matrix product: float32 on a CPU's threads, bfloat16 on a GPU."""
    torch.set_num_threads(task["threads"])
    device = resolve_device(task["device"])
    gpu = device.type == "cuda"
    side, products, dtype = (8192, 20, torch.bfloat16) if gpu else (2048, 1, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = [_seconds(lambda: [a @ b for _ in range(products)], device) for _ in range(5)]
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if gpu else machine()["cpu"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
        "peak": {
            "flops_per_second": 2 * side**3 * products / min(seconds),
            "dtype": str(dtype).removeprefix("torch."),
            "side": side,
            "products": products,
            "seconds": seconds,
        },
    }


def count_flops(task: dict[str, Any]) -> dict[str, Any]:
    """FLOPs of one call for each of the task's rows, a multiplication and an addition as two.

    The same update runs without computing anything: in one piece, eager, and nothing is computed twice.
    """
    net = _teacher(task["preset"]).to(META)
    return {"flops": [_flops(net, stage_settings(row["update"], row["recipe"])) for row in task["rows"]]}


def measure_row(task: dict[str, Any]) -> dict[str, Any]:
    """Build the step of a row and time its calls.

    Returns:
        ``seconds`` of each timed call and ``first_seconds`` of each one before them; ``cpu_seconds`` that this process
        had in all timed calls; ``peak_bytes``: allocated on the GPU in them, or resident in this process;
        ``idle_bytes`` of it before the step is built.
    """
    settings, compute = stage_settings(task["update"], task["recipe"]), Compute.model_validate(task["compute"])
    torch.set_num_threads(compute.threads)
    device = resolve_device(compute.device)
    with device:  # random weights are drawn where they are used
        teacher = _teacher(task["preset"])
    result: dict[str, Any] = {"idle_bytes": _peak_bytes(device)}
    step = build_step(teacher, settings, compute, device)
    updates = (partial(step, start) for start in count(0, settings.batch_size))
    result["first_seconds"] = [_seconds(update, device) for update in islice(updates, task["warmup"])]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.process_time()
    result["seconds"] = [_seconds(update, device) for update in islice(updates, task["repeats"])]
    result["cpu_seconds"] = time.process_time() - began
    result["peak_bytes"] = _peak_bytes(device)
    if task["profile"]:
        _write_profile(next(updates), device, Path(task["profile"]))
    return result


def build_step(teacher: Backbone, settings: Dm, compute: Compute, device: torch.device) -> DmStep:
    """The step as ``msd.distill.run`` builds it, of a student that owns all classes; it starts from the teacher.

    Args:
        teacher: brought to ``device`` in place.
        settings: those of ``Adm`` make an ``AdmStep``.
        compute: micro-batch, layout, compilation and recomputation.
        device: where to.
    """

    def ready(net: Backbone) -> Backbone:
        return prepare(net, device, settings.precision, compute)

    student, fake_score = ready(copy.deepcopy(teacher)), ready(copy.deepcopy(teacher))
    draws = Draws(0, device, micro_batch=compute.micro_batch)
    data = random_images(teacher)
    part = data if isinstance(data, RandomLatents) else torch.arange(teacher.num_classes)
    named: dict[str, Any] = {"pairs": _random_pairs(teacher, settings.regression.pairs)} if settings.regression else {}
    if not isinstance(settings, Adm):
        return DmStep(student, ready(teacher), fake_score, part, settings, draws, **named)
    named |= {"data": data, "real": torch.arange(IMAGES)}
    named["discriminator"] = Discriminator(*fake_score.features_shape).to(device)
    named["average"] = ready(copy.deepcopy(teacher))
    return AdmStep(student, ready(teacher), fake_score, part, settings, draws, **named)


def _teacher(preset: str) -> Backbone:
    """The teacher's file, or for a published teacher its architecture with random weights."""
    source, text = experiment_of(preset).teacher, PRESETS[preset].text
    if isinstance(source, FileSource):
        return load_network(ROOT / source.path)
    net: Backbone
    if text:
        from msd.networks.latent import build_latent

        net = build_latent(*published_text_network(KNOWN[text]), seed=0)
    else:
        assert isinstance(source, KnownSource)
        network, image_shape, classes = published_network(KNOWN[source.name])
        net = build_network(network, image_shape=image_shape, num_conditions=classes, seed=0)
    for layer in net.modules():  # products with zeros need less power, and then a GPU runs faster than in training
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            layer.reset_parameters()
    return net.eval().requires_grad_(False)


class RandomLatents:
    """Latents and prompts' hidden states as precomputed ones are read: from memory, in half precision."""

    def __init__(self, teacher: LatentDenoiser) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = teacher.image_shape, teacher.text_shape
        self._latents, self._text = (torch.randn((64, *shape), generator=generator).half() for shape in shapes)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self._text[indices % len(self._text)].float()

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._latents[indices % len(self._latents)].float(), self[indices]

    def some_conditions(self, count: int) -> Tensor:
        return self[torch.arange(count)]


def random_images(teacher: Backbone) -> LabelledImages | RandomLatents:
    """Images (2000, C, H, W) uint8 in memory, the classes in turn; or latents with texts."""
    if hasattr(teacher, "text_shape"):
        return RandomLatents(cast("LatentDenoiser", teacher))
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *teacher.image_shape), dtype=np.uint8)
    return LabelledImages(images, np.arange(IMAGES) % teacher.num_classes, teacher.num_classes, sha256="random")


def _random_pairs(teacher: Backbone, number: int) -> Pairs:
    """Noise (N, C, H, W) with other noise as the teacher's images."""
    noise, images = (Draws(0).normal(role, 0, (number, *teacher.image_shape)) for role in ("noise", "images"))
    return Pairs(noise, images, torch.arange(number) % teacher.num_classes)


def _flops(teacher: Backbone, settings: Dm) -> int:
    plain = settings.model_copy(update={"precision": "float32"})  # there is no autocast without a device
    step = build_step(teacher, plain, Compute(), META)
    with FlopCounterMode(display=False) as counter:
        step(0)
    return int(counter.get_total_flops())


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long some work takes, until the device has done it."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _write_profile(work: Callable[[], Any], device: torch.device, path: Path) -> None:
    """The operators that take most time themselves, one line each."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as profiler:
        work()
        _wait(device)
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60)
    write_text(path, table)


KINDS = {"device": describe_device, "flops": count_flops, "row": measure_row}


def main() -> None:
    """Read the task, write the result; of a failure, why."""
    gc.set_threshold(50_000, 10, 10)  # as the command msd does
    task = read_json(Path(sys.argv[1]))
    try:
        result = KINDS[task["kind"]](task)
    except Exception as e:
        traceback.print_exc()
        lines = str(e).strip().splitlines() or [""]
        result = {"failed": f"{type(e).__name__}: {lines[0]}"}
    write_json(Path(sys.argv[2]), result)


if __name__ == "__main__":
    main()
