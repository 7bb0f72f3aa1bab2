"""The claims of an experiment and what its manifests say of them, kept in a folder that is committed.

``keep`` copies the evaluations, byte for byte, to docs/claims/<experiment>/ and writes claims.json beside them;
``read_claims`` judges the claims from such a folder alone, so that the page can be rebuilt anywhere, and checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msd.config import Claim
from msd.errors import MissingFileError
from msd.intervals import Interval, Verdict, difference, verdict
from msd.plan import Node, Plan
from msd.report.check import check_inputs
from msd.report.read import one_metric
from msd.store import Manifest, read_json, sha256_file, verify_sha256, write_json, write_text

LIST, LATENCY = "claims.json", "latency.json"


@dataclass(frozen=True)
class Row:
    """A variant with all its seeds.

    Attributes:
        manifests: seed → its evaluation's manifest.
        metric: name of the distance.
        latency_ms: median of one image, None where it was not measured.
    """

    name: str
    manifests: dict[int, Manifest]
    metric: str
    latency_ms: float | None

    def values(self, key: str) -> dict[int, float]:
        """Seed → a number of the metrics."""
        return {seed: m.results["metrics"][key] for seed, m in self.manifests.items()}

    def distances(self, seeds: int) -> dict[int, float]:
        """Seed → the distance, of so many seeds at most: another claim may have asked for more."""
        return dict(list(self.values(self.metric).items())[:seeds])

    def interval(self, key: str) -> Interval:
        """Mean of a metric over the seeds."""
        return Interval.of(list(self.values(key).values()))

    def fact(self, key: str) -> Any:
        """What all seeds have in common, ``students`` say."""
        return next(iter(self.manifests.values())).results[key]


@dataclass(frozen=True)
class Comparison:
    """A pair of variants of which the first should have the smaller distance.

    Attributes:
        difference: first − second over the seeds that both have; None before both ran.
    """

    first: str
    second: str
    difference: Interval | None


@dataclass(frozen=True)
class Judged:
    """A claim and what was found."""

    claim: Claim
    comparisons: list[Comparison]
    verdict: Verdict


@dataclass(frozen=True)
class Claims:
    """All claims on one data set.

    Attributes:
        folder: holds the manifests and the list.
        rows: variant → its row; only those that ran.
    """

    experiment: str
    metric: dict[str, Any]
    folder: Path
    rows: dict[str, Row]
    judged: list[Judged]


def keep(plan: Plan, folder: Path) -> Claims:
    """Copy the finished evaluations that the claims need into ``folder`` and judge them.

    An evaluation that is not here stays if it was kept before, of the same settings: evidence adds up over machines.
    A claim of which a row was never evaluated is kept too, as not run.

    Raises:
        MissingFileError: nothing is evaluated.
        DamagedFileError: a result is stale, or the rows were measured differently.
    """
    before: dict[str, str] = read_json(folder / LIST)["made_as"] if (folder / LIST).exists() else {}
    rows: dict[str, dict[str, str]] = {}
    found: dict[str, Manifest] = {}
    made_as: dict[str, str] = {}

    def take(file: str, node: Node) -> bool:
        if node.manifest.exists():
            found[file] = Manifest.read(node.manifest)
            check_inputs(found[file])
        elif before.get(file) == str(node.manifest):
            found[file] = Manifest.read(folder / file)
        else:
            return False
        made_as[file] = str(node.manifest)
        return True

    for name in dict.fromkeys(name for claim in plan.experiment.claims for name in claim.variants):
        for replicate, node in zip(plan.replicates, plan.claimed(name), strict=False):
            seed = str(replicate.seed)
            if take(file := f"{name}-seed{seed}.json", node):
                rows.setdefault(name, {})[seed] = file
    if not found:
        raise MissingFileError(
            "Nothing that the claims need is evaluated yet.",
            where=str(plan.root),
            todo="Run `snakemake claims` with the --configfile that has the claims, experiments/claims.yaml.",
        )
    metric = one_metric(found)
    take(LATENCY, plan.latency)
    for file, manifest in found.items():
        write_text(folder / file, manifest.path.read_text(encoding="utf-8"))
    write_json(
        folder / LIST,
        {
            "experiment": plan.experiment.experiment,
            "data": plan.experiment.data.source,
            "metric": metric,
            "claims": [claim.model_dump(mode="json") for claim in plan.experiment.claims],
            "rows": rows,
            "made_as": made_as,
            "sha256": {file: sha256_file(folder / file) for file in found},
        },
    )
    for old in set(folder.glob("*.json")) - {folder / file for file in [*found, LIST]}:
        old.unlink()  # of a claim that is no more
    return read_claims(folder)


def read_claims(folder: Path) -> Claims:
    """Judge the claims from what ``keep`` wrote.

    Raises:
        MissingFileError, DamagedFileError: a manifest is gone, or not the one that the list names.
    """
    listed = read_json(folder / LIST)
    manifests = {}
    for file, sha256 in listed["sha256"].items():
        verify_sha256(folder / file, sha256, todo="Get it back from git, or write all anew (`snakemake claims`).")
        manifests[file] = Manifest.read(folder / file)
    latency = manifests[LATENCY].results["variants"] if LATENCY in manifests else {}
    metric = listed["metric"]
    rows = {
        name: Row(
            name,
            {int(seed): manifests[file] for seed, file in files.items()},
            metric["name"],
            latency.get(name, {}).get("p50_ms"),
        )
        for name, files in listed["rows"].items()
    }
    claims = [Claim.model_validate(claim) for claim in listed["claims"]]
    return Claims(listed["experiment"], metric, folder, rows, [_judge(claim, rows) for claim in claims])


def _judge(claim: Claim, rows: dict[str, Row]) -> Judged:
    seen = {name: rows[name].distances(claim.seeds) if name in rows else {} for name in claim.variants}
    comparisons = [Comparison(first, second, difference(seen[first], seen[second])) for first, second in claim.expected]
    return Judged(claim, comparisons, verdict([c.difference for c in comparisons]))
