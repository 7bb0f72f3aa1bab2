"""``msd evaluate --images …`` and ``--self-test``: measuring without a variant of the experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msd.cli.options import plan_of, positive
from msd.cli.progress import ProgressDisplay
from msd.errors import ConfigError
from msd.plan import Plan


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "images that were made elsewhere",
        "msd evaluate --images out/ --protocol protocols/fd_digits.yaml; docs/metrics.md shows more",
    )
    group.add_argument("--images", type=Path, metavar="PATH", help="a folder, zip or npz file of images to measure")
    group.add_argument(
        "--protocol",
        metavar="FILE",
        help="the same as --config evaluation.protocol=FILE; its keys can be changed by more --config",
    )
    group.add_argument(
        "--reference",
        type=Path,
        metavar="PATH",
        help="images, or statistics (mu and sigma in an npz file), to compare with (default: the protocol's own)",
    )
    group.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON, with the protocol's digest")
    group.add_argument(
        "--self-test",
        type=positive,
        nargs="?",
        const=2000,
        metavar="N",
        help="instead: break the metric on purpose, on N real images (2000); an error unless it is noticed",
    )


def measures(arguments: argparse.Namespace) -> bool:
    """Whether this is about such images.

    Raises:
        ConfigError: options that belong to them without any.
    """
    if arguments.images is not None or arguments.self_test is not None:
        return True
    if arguments.reference is not None or arguments.out is not None:
        raise ConfigError("--reference and --out belong to --images.", todo="Give --images, or leave them out.")
    _name_protocol(arguments)
    return False


def _name_protocol(arguments: argparse.Namespace) -> None:
    """The file comes before the single settings, which may change its keys."""
    if arguments.protocol is not None:
        arguments.config.insert(0, f"evaluation.protocol={arguments.protocol}")


def measure(arguments: argparse.Namespace) -> None:
    """Measure images, or test the metric; print what came out."""
    import torch

    from msd.training.engine import resolve_device

    _name_protocol(arguments)
    plan = plan_of(arguments)
    torch.set_num_threads(plan.experiment.compute.threads)
    device = resolve_device(plan.experiment.compute.device)
    if arguments.self_test is not None:
        _self_test(plan, arguments.self_test, device)
        return
    from msd.evaluate.images import evaluate_images
    from msd.store import write_json

    found = evaluate_images(arguments.images, plan, arguments.reference, device, ProgressDisplay(str(arguments.images)))
    if arguments.out is not None:
        write_json(arguments.out, found)
    print(_table(found))


def _table(found: dict[str, Any]) -> str:
    rows = [
        f"protocol {found['metric']['name']}, digest {found['protocol_digest'][:8]}; reference: {found['reference']}"
    ]
    rows += [f"{name:<28} {value:.6g}" for name, value in found["metrics"].items()]
    return "\n".join(rows)


def _self_test(plan: Plan, count: int, device: Any) -> None:
    from msd.config import Data
    from msd.data.archive import open_half
    from msd.data.prepare import prepare
    from msd.evaluate.frechet import frechet_distance
    from msd.evaluate.images import networks_of
    from msd.evaluate.metrics import spread, statistics_of
    from msd.evaluate.protocol import Ruler
    from msd.evaluate.selftest import require, sample_of, self_test
    from msd.store import Manifest

    if not plan.data.manifest.exists():
        prepare(Data.model_validate(plan.data.settings), plan.data.manifest, ProgressDisplay(plan.data.label))
    data, protocol = Manifest.read(plan.data.manifest), plan.experiment.evaluation.protocol
    ruler = Ruler(protocol, networks_of(plan), device)
    samples = []
    for half in ("evaluation", "train"):
        images = open_half(data, half)
        chosen = spread(len(images.labels), count)
        samples.append(sample_of(images.images[chosen], images.labels[chosen], ruler.extractors[protocol.name]))
    distance = frechet_distance(*(statistics_of(sample.features) for sample in samples))
    print(f"{protocol.name}: {len(samples[0].images)} real images against as many others: {distance:.4f}")
    outcomes = self_test(samples[0], samples[1])
    print("\n".join(map(str, outcomes)), flush=True)
    require(outcomes)
