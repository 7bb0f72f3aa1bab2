"""``msd toy``: the 2-D toy of the report, its map, and both as committed data and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msd.cli.actions import texts
from msd.cli.options import add_configuration, plan_of
from msd.cli.progress import ProgressDisplay
from msd.errors import ConfigError
from msd.plan import Node

DOCS = Path("docs")


class _Progress:
    """One display for each K."""

    def __init__(self) -> None:
        self.displays: dict[str, ProgressDisplay] = {}

    def __call__(self, label: str, done: int, total: int, seen: dict[str, float]) -> None:
        if label not in self.displays:
            self.displays[label] = ProgressDisplay(f"toy, {label}")
        self.displays[label](done, total, seen)


def toy(arguments: argparse.Namespace) -> None:
    plan = plan_of(arguments)
    figure, whole = _needed(plan.toy, "toy"), plan.toy_map
    if arguments.manifest not in (None, figure.manifest, *([whole.manifest] if whole else [])):
        plan.find(arguments.manifest)  # says what is wrong with it
        raise ConfigError("This is not made by `msd toy`.", where=str(arguments.manifest))
    if arguments.docs:
        from msd.report.toy import publish

        for path in publish(figure, _needed(whole, "toy.map"), DOCS):
            print(path)
        return
    from msd.toy.run import run_figure, run_map

    if arguments.map or (whole and arguments.manifest == whole.manifest):
        node = _needed(whole, "toy.map")
        manifest = run_map(node, plan.toy_cells, _Progress())
    else:
        node = figure
        manifest = run_figure(node, plan.toy_cells, _Progress())
    print(f"{node.label}: {manifest.path}")


def _needed(node: Node | None, key: str) -> Node:
    if node is None:
        raise ConfigError(f"This experiment has no {key}.", todo=f"Set {key} (experiments/toy2d.yaml has one).")
    return node


def register(commands: Any) -> None:
    """Add the subcommand."""
    summary = "train the 2-D toy of the report: K students for each K. Finished cells are not trained again"
    examples = ["msd toy", "msd toy --map", "msd toy --docs"]
    parser = commands.add_parser("toy", help=summary.split(".")[0], **texts(summary, examples))
    parser.add_argument("manifest", nargs="?", type=Path, help="the manifest to make, as `snakemake -n` shows it")
    parser.add_argument("--map", action="store_true", help="train the map of widths and budgets instead (half an hour)")
    parser.add_argument(
        "--docs", action="store_true", help="write docs/claims/toy2d.json and docs/images/toy2d*.png from what is there"
    )
    add_configuration(parser)
    parser.set_defaults(run=toy)
