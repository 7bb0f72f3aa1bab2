"""Subcommands around the stages: params, bundle, export, report, track."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msd.cli.actions import CommandParser, texts
from msd.cli.options import add_configuration, configuration_text, plan_of, positive
from msd.store import Manifest


def params(arguments: argparse.Namespace) -> None:
    if arguments.reference:
        from msd.reference import reference

        print(reference(), end="")
        return
    import yaml

    print(yaml.safe_dump(plan_of(arguments).experiment.model_dump(mode="json"), sort_keys=False), end="")


def bundle(arguments: argparse.Namespace) -> None:
    from msd.bundle.write import link_students, write_bundle

    plan = plan_of(arguments)
    variant = plan.variant(arguments.variant)
    for replicate in plan.replicates:
        if replicate.variants[variant.name].bundle.manifest.parent == arguments.out:
            variant = replicate.variants[variant.name]
    manifest = write_bundle(variant, arguments.out)
    if manifest.path == plan.variants[variant.name].bundle.manifest:
        link_students(variant, plan.root)
    print(f"{variant.name}: {manifest.path}")


def export(arguments: argparse.Namespace) -> None:
    from msd.bundle.export import export_network

    print(export_network(plan_of(arguments), arguments.role, arguments.out))


def claims(arguments: argparse.Namespace) -> None:
    from msd.report import claims_page

    if arguments.check:
        print(f"{claims_page.PAGE} is what {claims_page.check_page()} manifests give")
        return
    plan = plan_of(arguments)
    for judged in claims_page.build(plan).judged:
        print(f"{judged.claim.number:>4}  {judged.claim.claim}  {claims_page.verdict_text(judged)}")
    missing = [path for path in plan.claim_inputs if not path.exists()]
    print(f"{claims_page.PAGE}" + (f"; {len(missing)} evaluations are not here, {missing[0]} say" if missing else ""))


def report(arguments: argparse.Namespace) -> None:
    plan = plan_of(arguments)
    if arguments.show:
        from msd.report.show import show

        print(show(plan))
        return
    if arguments.check:
        from msd.report.check import check

        print(f"{check(plan)} files are what their manifests say")
        return
    if arguments.readme:
        from msd.report.readme import update_readme

        update_readme(plan, Path("README.md"), Path("docs/images/overview.png"))
        return
    if arguments.pdf:
        from msd.report.pdf import print_report

        print_report(plan, arguments.pdf)
        print(arguments.pdf)
        return
    if arguments.tables:
        from msd.report.published import write_tables

        print("\n".join(map(str, write_tables(plan, arguments.tables))))
        return
    from msd.report.build import build_report

    print(build_report(plan, configuration_text(arguments)).path)


def track(arguments: argparse.Namespace) -> None:
    from msd.tracking import follow, track

    def tell(line: str) -> None:
        print(line, flush=True)

    plan = plan_of(arguments)
    if arguments.follow is None:
        manifest: Manifest | None = track(plan, arguments.uri, tell)
    else:
        manifest = follow(plan, arguments.uri, arguments.follow, tell)
    print(manifest.path if manifest else "not finished yet; --follow stays with it, or give the same command again")


def register(commands: Any) -> None:
    """Add the subcommands."""

    def add(name: str, run: Any, summary: str, examples: list[str]) -> CommandParser:
        parser: CommandParser = commands.add_parser(name, help=summary, **texts(summary, examples))
        parser.set_defaults(run=run)
        return parser

    p = add(
        "params",
        params,
        "print the configuration with all overlays and defaults",
        ["msd params --configfile experiments/smoke.yaml", "msd params --reference > docs/params.md"],
    )
    p.add_argument("--reference", action="store_true", help="print the page that explains every key instead")
    add_configuration(p)

    p = add(
        "bundle", bundle, "collect a variant's students, partition and router in one folder", ["msd bundle msd4 out/"]
    )
    p.add_argument("variant")
    p.add_argument("out", type=Path)
    add_configuration(p)

    p = add(
        "export",
        export,
        "write a trained teacher or classifier with the manifest of how it was trained",
        ["msd export teacher resources/teachers/mnist.safetensors --configfile experiments/mnist-networks.yaml"],
    )
    p.add_argument("role", choices=["teacher", "features", "judge"])
    p.add_argument("out", type=Path)
    add_configuration(p)

    p = add(
        "report",
        report,
        "write the ablation table, the figures and report.html",
        ["msd report", "msd report --show", "msd report --pdf report.pdf"],
    )
    action = p.add_action(
        "claims",
        claims,
        "judge the experiment's claims by the evaluations that are there and renew docs/claims.md",
        ["msd report claims --configfile experiments/claims.yaml", "msd report claims --check"],
    )
    action.add_argument("--check", action="store_true", help="rebuild the page from docs/claims/ and compare the bytes")
    add_configuration(action)
    p.add_argument("--show", action="store_true", help="print the table that is there")
    p.add_argument("--check", action="store_true", help="compare the files it was made from with their sha256")
    p.add_argument("--readme", action="store_true", help="renew README.md's table and picture from the report")
    p.add_argument("--pdf", type=Path, metavar="OUT", help="print report.html as PDF (needs Chromium)")
    p.add_argument(
        "--tables",
        type=Path,
        metavar="OUTDIR",
        help="write the paper's tables 1 to 3 with our column, LaTeX and Markdown",
    )
    add_configuration(p)

    p = add(
        "track",
        track,
        "project the journals and manifests into MLflow, finished or not",
        ["msd track", "msd track --follow", "msd track --uri http://127.0.0.1:5000"],
    )
    p.add_argument(
        "--follow",
        type=positive,
        nargs="?",
        const=10,
        metavar="SECONDS",
        help="stay, and look again every so many seconds (10) until the experiment is finished",
    )
    p.add_argument("--uri", help="MLflow tracking URI (default: sqlite, ./mlflow.db)")
    add_configuration(p)
