"""How fast one training update is, and what each lever changes: a table for people and a JSON file with every number.

    python benchmarks/train_step.py                         # on a GPU: ImageNet-64's network; else the embedded one
    python benchmarks/train_step.py --levers bf16,compile --profile

Each row is measured in a process of its own, so rows share no memory, no cache of the compiler and no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import LEVERS, PRESETS, Row, chosen, rows_of

from msd.cli.options import positive
from msd.errors import ConfigError, MsdError
from msd.store import code_version, machine, read_json, write_json, write_text

MEASURE = Path(__file__).with_name("measure.py")
HEAD = (
    "update",
    "row",
    "images/s",
    "min – max",
    "of base",
    "student images/s",
    "TFLOP/s",
    "of peak",
    "peak memory",
    "first call",
    "CPUs",
)
NOTES = """\
- One call is one student update: {iterations} iterations of {batch} generated images. images/s counts the images of
  all iterations, student images/s those of the student's updates. Both are of the median of {repeats} timed calls
  after {warmup} to warm up; min – max is of single calls.
- TFLOP/s: what the update needs by its definition, a multiply-add as two; recomputation is not counted. The peak is
  the best rate of a {dtype} product of two {side}×{side} matrices on this device: {peak} TFLOP/s.
- teacher-features and strict-alternation change what an update does: their TFLOP/s do not compare with the base's.
- Peak memory: {memory}. First call: with what is compiled or chosen at first use.
- CPUs: processor seconds per second. Fewer than threads, without a GPU, may mean that others ran meanwhile.
- Weights: {weights}. Images, noise and regression pairs are random, as they do not matter for speed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table; returns the exit code: 1 if every row failed."""
    try:
        report = run(_parser().parse_args(argv))
    except MsdError as e:
        print(f"train_step: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    print(as_markdown(report))
    return int(all("failed" in row for row in report["rows"]))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure row by row; the files are written anew after each one.

    Raises:
        ConfigError: the device or the preset cannot be used, or a lever is unknown.
    """
    wanted, base = chosen(arguments.levers), chosen(arguments.base)
    device = in_own_process({"kind": "device", "device": arguments.device, "threads": arguments.threads})
    if "failed" in device:
        raise ConfigError("The device cannot be used.", where=arguments.device, why=device["failed"])
    preset = arguments.preset or ("imagenet64" if device["type"] == "cuda" else "embedded")
    report: dict[str, Any] = {
        "preset": preset,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "device": device,
        "code": code_version(),
        "threads": arguments.threads,
        "warmup": arguments.warmup,
        "repeats": arguments.repeats,
        "base": base,
        "rows": [],
    }
    path = arguments.out / f"benchmark-{preset}-{device['type']}.json"
    rows = list(rows_of(preset, wanted, base, arguments.batch, device["type"], arguments.threads))
    flops = flops_of(preset, rows)
    for row in rows:
        name = row.name.replace("+ ", "").replace("− ", "no-")
        profile = arguments.out / f"profile-{preset}-{device['type']}-{row.update}-{name}.txt"
        report["rows"].append(measured(row, flops[row.work], report, profile if arguments.profile else None))
        write_json(path, report)
        write_text(path.with_suffix(".md"), as_markdown(report) + "\n")
    return report


def flops_of(preset: str, rows: Sequence[Row]) -> dict[str, int]:
    """FLOPs of one call, counted once for all rows that do the same work.

    Raises:
        ConfigError: the preset's network cannot be built.
    """
    different = {row.work: row for row in rows}
    asked = [{"update": row.update, "recipe": row.recipe.model_dump(mode="json")} for row in different.values()]
    result = in_own_process({"kind": "flops", "preset": preset, "rows": asked})
    if "failed" in result:
        raise ConfigError("The preset cannot be measured.", where=preset, why=result["failed"])
    return dict(zip(different, result["flops"], strict=True))


def measured(row: Row, flops: int, report: dict[str, Any], profile: Path | None) -> dict[str, Any]:
    """A row's settings with what was measured and what follows from it, or why it failed."""
    print(f"{row.update}: {row.name} …", file=sys.stderr, flush=True)
    settings = {
        "update": row.update,
        "row": row.name,
        "recipe": row.recipe.model_dump(mode="json"),
        "compute": row.compute.model_dump(mode="json"),
    }
    common = {name: report[name] for name in ("preset", "warmup", "repeats")}
    result = in_own_process({"kind": "row", **settings, **common, "profile": profile and str(profile.resolve())})
    if "failed" in result:
        return settings | result
    batch, iterations = row.recipe.batch_size, row.recipe.two_time_scale_ratio
    median, images = statistics.median(result["seconds"]), batch * iterations
    return settings | {
        **result,
        "flops": flops,
        "median_seconds": median,
        "images_per_second": images / median,
        "images_per_second_range": [images / max(result["seconds"]), images / min(result["seconds"])],
        "student_images_per_second": batch / median,
        "flops_per_second": flops / median,
        "share_of_peak": flops / median / report["device"]["peak"]["flops_per_second"],
    }


def in_own_process(task: dict[str, Any]) -> dict[str, Any]:
    """What ``measure.py`` makes of a task; whatever ends it, ``failed`` says so."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        asked, answer = Path(folder, "task.json"), Path(folder, "result.json")
        write_json(asked, task)
        # a fresh cache, so that the first call shows what compiling costs; stdout is for the table
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "compiled"))}
        ended = subprocess.run([sys.executable, MEASURE, asked, answer], env=environment, stdout=sys.stderr)
        if not answer.exists():
            killed = ended.returncode == -signal.SIGKILL
            return {"failed": "killed, perhaps for want of memory" if killed else f"ended with {ended.returncode}"}
        result: dict[str, Any] = read_json(answer)
        return result


def as_markdown(report: dict[str, Any]) -> str:
    """The table and how to read it, all of it from the report."""
    device, code, some = report["device"], report["code"], report["rows"][0]
    bases = {row["update"]: row for row in report["rows"] if row["row"] == "base"}
    lines = [_line(HEAD), _line([":--", ":--", *["--:"] * (len(HEAD) - 2)])]
    lines += [_line(_cells(row, bases[row["update"]])) for row in report["rows"]]
    notes = NOTES.format(
        iterations=some["recipe"]["two_time_scale_ratio"],
        batch=some["recipe"]["batch_size"],
        repeats=report["repeats"],
        warmup=report["warmup"],
        peak=_digits(device["peak"]["flops_per_second"] / 1e12),
        dtype=device["peak"]["dtype"],
        side=device["peak"]["side"],
        memory=_memory_note(report),
        weights="the teacher's" if report["preset"] == "embedded" else "random",
    )
    commit = f"{(code['commit'] or 'unknown')[:12]}{' with changes' if code['dirty'] else ''}"
    return "\n".join(
        [
            f"# One training update: {report['preset']} on {device['name']}",
            "",
            f"{report['date'][:10]}, msd {code['version']}, commit {commit}, torch {device['torch']}, "
            f"Python {report['machine']['python']}, {report['threads']} of {report['machine']['cores']} CPU threads. "
            f"Base: {', '.join(report['base']) or 'all levers off'}.",
            "",
            *lines,
            "",
            notes,
        ]
    )


def _memory_note(report: dict[str, Any]) -> str:
    if report["device"]["type"] == "cuda":
        return "allocated on the GPU in timed calls"
    idle = [row["idle_bytes"] for row in report["rows"] if "failed" not in row]
    return f"of the process{f', {_size(max(idle))} of it before the step is built' if idle else ''}"


def _cells(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    names = [row["update"], row["row"]]
    if "failed" in row:
        return [*names, f"failed: {row['failed'][:160].replace('|', '/')}", *[""] * (len(HEAD) - 3)]
    low, high = row["images_per_second_range"]
    return [
        *names,
        _digits(row["images_per_second"]),
        f"{_digits(low)} – {_digits(high)}",
        "" if "failed" in base else f"{row['images_per_second'] / base['images_per_second']:.2f}",
        _digits(row["student_images_per_second"]),
        _digits(row["flops_per_second"] / 1e12),
        f"{row['share_of_peak']:.1%}",
        _size(row["peak_bytes"]),
        f"{_digits(row['first_seconds'][0])} s",
        f"{row['cpu_seconds'] / sum(row['seconds']):.2f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(LEVERS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), help="default: imagenet64 on a GPU, embedded on a CPU")
    parser.add_argument("--levers", default="all", help=f"all, none, or some, with commas: {names}")
    parser.add_argument("--base", default="none", help="levers that are on in the base; their rows switch them off")
    parser.add_argument("--batch", type=positive, help="of generated images (default: the recipe's, imagenet64: 40)")
    parser.add_argument("--repeats", type=positive, default=7, help="timed calls (default: %(default)s)")
    parser.add_argument("--warmup", type=positive, default=2, help="calls before them (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="also write the 15 slowest operators of each row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
