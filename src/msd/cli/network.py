"""``msd network summary``: what the networks of a configuration cost, before any of them exists."""

from __future__ import annotations

import argparse
import json
from typing import Any

from msd.cli.actions import CommandParser, texts
from msd.cli.options import add_configuration, plan_of
from msd.config import TEACHER
from msd.plan import Plan

ROW = "{:<12}{:>14}{:>10}{:>14}"


def summary(arguments: argparse.Namespace) -> None:
    plan = plan_of(arguments)
    costs = costs_of(plan)
    if arguments.json:
        print(json.dumps(costs, indent=1))
        return
    print(ROW.format("network", "parameters", "GFLOP", "activations"))
    for name, cost in costs.items():
        gflop, activations = f"{cost['gflop']:,.4g}", _size(cost["activation_bytes"])
        print(ROW.format(name, f"{cost['parameters']:,}", gflop, activations))
    print(
        "GFLOP: one forward pass of one image, a multiply-add as two. Activations: what one image keeps for the\n"
        "backward pass, in float32. `msd plan` predicts the memory and the time of every stage."
    )


def costs_of(plan: Plan) -> dict[str, Any]:
    """Name of each network → parameters, GFLOP, bytes of activations."""
    from msd.networks.summary import network_cost
    from msd.teachers.describe import describe_teacher

    network, image_shape, classes = describe_teacher(plan)
    used = {getattr(variant, "network", TEACHER) for variant in plan.experiment.variants.values()} - {TEACHER}
    networks = {TEACHER: network, **{name: n for name, n in plan.experiment.networks.items() if name in used}}
    measured = {name: network_cost(n, image_shape, classes) for name, n in networks.items()}
    return {
        name: {"parameters": cost.parameters, "gflop": cost.gflop, "activation_bytes": cost.activation_bytes}
        for name, cost in measured.items()
    }


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def register(commands: Any) -> None:
    """Add ``msd network``."""
    about = "what the networks of a configuration cost"
    network: CommandParser = commands.add_parser("network", help=about, **texts(about, ["msd network summary"]))
    network.set_defaults(run=lambda _: network.print_help())
    parser = network.add_action(
        "summary",
        summary,
        "print parameters, FLOPs and activations of the teacher and of the networks that variants use",
        ["msd network summary", "msd network summary --json --configfile experiments/imagenet64.yaml"],
    )
    parser.add_argument("--json", action="store_true", help="as JSON, keys teacher.parameters, teacher.gflop, …")
    add_configuration(parser)
