"""Compare the files of an experiment with the digests in its manifests. What was copied or pulled is proved so."""

from __future__ import annotations

from msd.plan import Plan
from msd.report.read import check_inputs
from msd.store import Manifest, verify_sha256


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
