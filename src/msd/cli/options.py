"""Options that the commands share: which configuration, and which piece of its plan."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from msd.config import load
from msd.errors import ConfigError
from msd.plan import Node, Plan


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the experiment, the same as Snakemake's."""
    group = parser.add_argument_group("configuration")
    group.add_argument("--params", type=Path, default=Path("params.yaml"), help="base file (default: params.yaml)")
    group.add_argument(
        "--configfile", type=Path, action="append", default=[], metavar="FILE", help="overlay, may be repeated"
    )
    group.add_argument(
        "--config", action="append", default=[], metavar="KEY=VALUE", help="one setting, e.g. recipe.dm.images=1280"
    )


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan of the configuration that the arguments choose."""
    return Plan(load(arguments.params, arguments.configfile, arguments.config))


def configuration_text(arguments: argparse.Namespace) -> str:
    """The same options as one would type them; empty where all are the defaults."""
    words = [] if arguments.params == Path("params.yaml") else ["--params", str(arguments.params)]
    words += [word for path in arguments.configfile for word in ("--configfile", str(path))]
    words += [word for setting in arguments.config for word in ("--config", setting)]
    return shlex.join(words)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the ways to name a piece of the plan."""
    parser.add_argument("manifest", nargs="?", type=Path, help="the manifest to make, as `snakemake -n` shows it")
    parser.add_argument("--variant", help="or: the variant it belongs to …")
    parser.add_argument("--student", type=int, default=0, help="… and the number of its student, from 0 (default: 0)")


def target_of(arguments: argparse.Namespace, plan: Plan, kind: str) -> Node:
    """The node of the plan that the arguments name.

    Raises:
        ConfigError: it does not exist, is of another kind, or none is named.
    """
    if arguments.manifest is not None:
        node = plan.find(arguments.manifest)
    elif arguments.variant is not None:
        node = _of_variant(plan, arguments.variant, arguments.student, kind)
    else:
        nodes = [node for node in plan if node.kind == kind]
        if len(nodes) != 1:
            raise ConfigError(
                f"This experiment has {len(nodes)} pieces of work of the kind {kind!r}.",
                todo="Name one by its manifest or by --variant and --student."
                + "".join(f"\n      {n.manifest}  {n.label}" for n in nodes),
            )
        node = nodes[0]
    if node.kind != kind:
        raise ConfigError(f"This is made by `msd {node.kind}`, not by `msd {kind}`.", where=str(node.manifest))
    return node


def _of_variant(plan: Plan, variant: str, student: int, kind: str) -> Node:
    chosen = plan.variant(variant)
    if kind == "evaluate":
        return chosen.evaluation
    if kind == "breakdown" and chosen.breakdown is not None:
        return chosen.breakdown
    if kind == "partition" and chosen.partition is not None:
        return chosen.partition
    return plan.student_node(variant, student, kind)


def positive(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
