"""Is what lies on disk still what it was made from? Inputs of manifests, and every file of an experiment."""

from __future__ import annotations

import os
from pathlib import Path

from msd.errors import DamagedFileError, MissingFileError
from msd.plan import Plan
from msd.store import Manifest, sha256_file, verify_sha256

RERUN = "Delete {path} and run `snakemake` again."


def check_inputs(manifest: Manifest) -> None:
    """Check that what a manifest was made from is still what lies on disk.

    Raises:
        MissingFileError: an input is gone.
        DamagedFileError: an input has changed since.
    """
    for role, record in manifest.body["inputs"].items():
        path = Path(os.path.normpath(manifest.path.parent / record["path"]))
        if not path.is_file():
            raise MissingFileError(
                "What a result was made from is missing.",
                where=str(path),
                why=f"{manifest.path} names it as its input {role!r}",
                todo="Run `snakemake` again.",
            )
        if (now := sha256_file(path)) != record["sha256"]:
            raise DamagedFileError(
                "A result is stale: its input has changed since.",
                where=str(manifest.path),
                why=f"its input {role!r}, {path}, has the sha256 {now[:16]}…, but was {record['sha256'][:16]}… then",
                todo=RERUN.format(path=manifest.path),
            )


def current_report(plan: Plan) -> Manifest:
    """The report's own manifest, if it was made from this plan and from what lies on disk now.

    Raises:
        MissingFileError: there is no report yet.
        DamagedFileError: the report is of other settings or older results.
    """
    manifest = Manifest.read(plan.report)
    check_inputs(manifest)
    recorded = {os.path.normpath(plan.root / r["path"]) for r in manifest.body["inputs"].values()}
    if recorded != {os.path.normpath(path) for path in plan.report_inputs}:
        raise DamagedFileError(
            "The report was made with other settings.",
            where=str(plan.report),
            why="it names other manifests than this configuration does",
            todo="Run `snakemake` again, or give the --configfile and --config of the run.",
        )
    return manifest


def check(plan: Plan) -> int:
    """Check every manifest's inputs and files, the report's own included; returns the number of files.

    Training state is passed over where it is missing: it stays on the machine that trained.

    Raises:
        MissingFileError: a manifest or a file is not there.
        DamagedFileError: one is not what its sha256 says.
    """
    checked = 0
    for path in [*plan.report_inputs, plan.report]:
        manifest = Manifest.read(path)
        check_inputs(manifest)
        for name in manifest.body["files"]:
            file = manifest.file(name, verify=False)
            if file.exists() or plan.root / "state" not in file.parents:
                verify_sha256(file, manifest.sha256(name))
                checked += 1
    return checked
