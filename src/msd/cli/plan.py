"""``msd plan``: memory, micro-batch and time of every student, before anything is trained."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from msd.cli.actions import texts
from msd.cli.gpus import GIB, GPUS, Gpu, gpu_called
from msd.cli.options import add_configuration, plan_of, positive
from msd.cli.predict import Machine, Row, predict

SHARE = 0.3
ROW = "{:<20}{:>12}{:>7}{:>7}{:>13}{:>12}{:>10}{:>11}{:>12}  {}"
HEAD = ("students", "images", "batch", "micro", "memory", "FLOP/image", "FLOP", "time", "GPU time", "variants")
NOTES = """\
Images, batch, time: of one student, on {devices} × {name} of {memory:.1f} GiB. FLOP, GPU time: of all of a row.
Micro: images at once on one device. Memory: most on one device, of tensors; !: more than {usable:.0%} of what it has.
FLOP/image: of a student's image with all that goes with it; a multiply-add counts as two.
Teacher, regression pairs and evaluation are not in it.
Time: {time}."""
PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "": 1.0}


def plan(arguments: argparse.Namespace) -> None:
    machine, rows = _machine(arguments), []
    if not arguments.json:
        print(ROW.format(*HEAD), flush=True)
    for row in predict(plan_of(arguments), machine):
        rows.append(row)
        if not arguments.json:
            print(_line(row), flush=True)
    tflop = sum(row.tflop for row in rows)
    known = [row.gpu_hours for row in rows if row.gpu_hours is not None]
    gpu_hours = sum(known) if len(known) == len(rows) else None
    if arguments.json:
        total = {"students": sum(row.students for row in rows), "tflop": tflop, "gpu_hours": gpu_hours}
        share = None if arguments.tflops else arguments.share
        about = {"machine": asdict(machine), "share": share, "rows": [asdict(row) for row in rows], "total": total}
        print(json.dumps(about, indent=1))
        return
    print(ROW.format("all", "", "", "", "", "", _flop(tflop), "", _time(gpu_hours), "").rstrip())
    print(_notes(arguments, machine, rows))


def _machine(arguments: argparse.Namespace) -> Machine:
    """The GPU that is named, else the one that is here, else the CPU."""
    gpu = GPUS[arguments.gpu] if arguments.gpu else _gpu_here()
    peak: dict[str, float | None]
    if gpu is None:
        import psutil

        name, memory, peak = "CPU", psutil.virtual_memory().total, {"float32": None, "bfloat16": None}
    else:
        name, memory = arguments.gpu or gpu.model, round(gpu.memory_gib * GIB)
        peak = {"float32": gpu.float32, "bfloat16": gpu.bfloat16}
    sustained = {precision: arguments.tflops or (x and arguments.share * x) for precision, x in peak.items()}
    return Machine(name, gpu is not None, memory, sustained, arguments.gpus)


def _gpu_here() -> Gpu | None:
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return gpu_called(about.name, about.total_memory)


def _line(row: Row) -> str:
    return ROW.format(
        f"{row.students} × {row.stage} {row.network}",
        f"{row.images:,}",
        row.batch_size,
        row.micro_batch,
        f"{'' if row.fits else '! '}{row.memory_bytes / GIB:,.2f} GiB",
        _flop(row.tflop_per_image),
        _flop(row.tflop),
        _time(row.hours),
        _time(row.gpu_hours),
        ", ".join(row.variants),
    )


def _flop(tflop: float) -> str:
    prefix, unit = next((p, u) for p, u in PREFIXES.items() if tflop * 1e12 >= u)
    return f"{tflop * 1e12 / unit:,.4g} {prefix}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if 60 * hours >= 1 else f"{3600 * hours:.2g} s"


def _notes(arguments: argparse.Namespace, machine: Machine, rows: list[Row]) -> str:
    from msd.training.micro_batch import USABLE

    used = {row.precision: machine.tflops[row.precision] for row in rows}
    rates = ", ".join(f"{speed:.4g} TFLOP/s in {precision}" for precision, speed in used.items() if speed is not None)
    basis = "as given" if arguments.tflops else f"{arguments.share:.0%} of the peak (--share)"
    return NOTES.format(
        devices=machine.devices,
        name=machine.name,
        memory=machine.memory_bytes / GIB,
        usable=USABLE,
        time=f"an estimate, at {rates}, {basis}" if rates else "unknown; give --tflops or a --gpu",
    )


def register(commands: Any) -> None:
    """Add ``msd plan``."""
    about = "predict memory and time of every student, and the micro-batch that fits"
    examples = [
        "msd plan",
        "msd plan --gpu h200 --configfile experiments/imagenet64.yaml",
        "msd plan --gpu a100-80 --gpus 8 --share 0.4 --json --configfile experiments/imagenet64.yaml",
    ]
    parser: argparse.ArgumentParser = commands.add_parser("plan", help=about, **texts(about, examples))
    parser.set_defaults(run=plan)
    parser.add_argument("--gpu", choices=list(GPUS), help="to plan for (default: the one that is here, else the CPU)")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="that train one student (default: 1)")
    parser.add_argument("--share", type=_share, default=SHARE, help=f"of the peak that is reached (default: {SHARE})")
    parser.add_argument("--tflops", type=_speed, metavar="X", help="TFLOP/s that one device sustains, for --share")
    parser.add_argument("--json", action="store_true", help="as JSON, keys machine, share, rows, total")
    add_configuration(parser)


def _speed(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _share(text: str) -> float:
    value = _speed(text)
    if value > 1:
        raise argparse.ArgumentTypeError("must be at most 1")
    return value
