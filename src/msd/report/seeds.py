"""The same variants trained with other seeds, where such results lie beside those of a plan.

Nothing is trained for the report's sake: what the claims have trained lies under other paths of the same experiment,
and a replicate of the plan finds it again, since a path is the digest of all settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msd.plan import RESULTS, Plan
from msd.report.check import check_inputs
from msd.store import Manifest, sha256_file

MOST = 10  # seeds that are looked for


@dataclass(frozen=True)
class Replicate:
    """A variant's distance with another seed.

    Attributes:
        manifest: path of the evaluation's, as it is called from the project's folder.
        sha256: of that manifest.
    """

    seed: int
    distance: float
    manifest: str
    sha256: str


def evaluations(plan: Plan) -> dict[tuple[str, int], Manifest]:
    """(variant, seed) → evaluation, its inputs checked, for every other seed with which a variant is finished."""
    found = {}
    for other in _other_seeds(plan):
        for name, variant in other.variants.items():
            node = variant.evaluation
            if node.manifest != plan.variants[name].evaluation.manifest and node.manifest.exists():
                found[name, other.seed] = Manifest.read(node.manifest)
    for manifest in found.values():
        check_inputs(manifest)
    return found


def replicates(plan: Plan, variant: str, found: Mapping[tuple[str, int], Manifest]) -> list[Replicate]:
    """Those of one variant; all carry the metric that the table is in."""
    return [
        Replicate(
            seed=seed,
            distance=m.results["metrics"][m.results["metric"]["name"]],
            manifest=str(RESULTS / m.path.relative_to(plan.root.parent)),
            sha256=sha256_file(m.path),
        )
        for (name, seed), m in found.items()
        if name == variant
    ]


def _other_seeds(plan: Plan) -> list[Plan]:
    """The replicates of this plan that results may be of."""
    return [Plan(plan.experiment, plan.root.parent, replicate=r) for r in range(1, MOST)]
