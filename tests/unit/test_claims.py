"""The page of claims: from the manifests of several seeds, and again from what is committed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import report_fixtures as fixtures

from msd.cli.main import main
from msd.config import Experiment
from msd.errors import DamagedFileError, MissingFileError
from msd.plan import Plan
from msd.report import claims_page
from msd.report.claims import read_claims
from msd.store import Manifest

CLAIMS = [
    {"number": "1", "claim": "Four beat one.", "paper": "2.37 v 2.60", "expected": [["msd4", "single"]], "seeds": 3},
    {"number": "10", "claim": "At equal cost too.", "paper": "–", "expected": [["msd4", "single-matched-compute"]]},
    {"number": "2", "claim": "A quarter is enough.", "paper": "–", "expected": [["msd4-equal-total", "single"]],
     "seeds": 1},
]  # fmt: skip


@pytest.fixture
def config() -> Experiment:
    return Experiment.model_validate({**fixtures.experiment().model_dump(mode="json"), "claims": CLAIMS})


@pytest.fixture
def plan(tmp_path: Path, config: Experiment) -> Plan:
    plan = fixtures.make_results(tmp_path / "results", config)
    for replicate in plan.replicates[1:]:
        for variant in replicate.variants.values():
            source = Manifest.read(plan.variants[variant.name].evaluation.manifest)
            results = {**source.results, "metrics": dict(source.results["metrics"])}
            results["metrics"]["fd_digits"] += replicate.seed * (1 + 0.01 * len(variant.name))
            Manifest.write(variant.evaluation.manifest, kind="evaluate", settings={}, results=results)
    return plan


def page_of(folder: Path) -> str:
    return (folder / "claims.md").read_text(encoding="utf-8")


def test_replicates_move_the_seeds_of_students_alone(config: Experiment) -> None:
    plan = Plan(config)
    assert [r.seed for r in plan.replicates] == [0, 1, 2]
    first, second = (r.variants["msd4-small"] for r in plan.replicates[:2])
    nodes = [{n.manifest for s in v.students for n in s.stages} for v in (first, second)]
    assert not nodes[0] & nodes[1]
    assert {r.teacher.manifest for r in plan.replicates} == {plan.teacher.manifest}
    assert all(plan.find(path).manifest == path for group in nodes for path in group)
    assert plan.images_ahead(second.students[0].stages[0]) == plan.images_ahead(first.students[0].stages[0])
    # no more seeds than some claim asks for
    assert plan.claimed("msd4-equal-total") == [plan.variants["msd4-equal-total"].evaluation]
    assert len(plan.claimed("msd4")) == 3


def test_verdicts_come_from_the_manifests(plan: Plan, tmp_path: Path) -> None:
    kept = claims_page.build(plan, tmp_path / "docs/claims", tmp_path / "docs/claims.md")
    assert [j.verdict for j in kept.judged] == ["holds", "does not hold", "worse, one seed"]
    (pair,) = kept.judged[0].comparisons
    fd = {name: [fixtures.FD[name] + s * (1 + 0.01 * len(name)) for s in range(3)] for name in ("msd4", "single")}
    assert pair.difference is not None
    assert pair.difference.mean == pytest.approx(sum(fd["msd4"]) / 3 - sum(fd["single"]) / 3)
    page = page_of(tmp_path / "docs")
    assert page.index("Four beat one.") < page.index("A quarter is enough.") < page.index("At equal cost too.")
    assert "[2](claims/mnist/msd4-seed2.json)" in page
    assert Manifest.read(plan.claims).body["inputs"].keys() == {
        str(path.relative_to(plan.root)) for path in plan.claim_inputs
    }


def test_page_is_rebuilt_from_what_is_kept(plan: Plan, tmp_path: Path) -> None:
    folder, page = tmp_path / "docs/claims", tmp_path / "docs/claims.md"
    claims_page.build(plan, folder, page)
    shutil.rmtree(tmp_path / "results")
    assert claims_page.check_page(folder, page) == 10
    page.write_text(page.read_text().replace("holds", "fails", 1))
    with pytest.raises(DamagedFileError, match="not the one that its manifests give"):
        claims_page.check_page(folder, page)
    kept = folder / "mnist/msd4-seed1.json"
    kept.write_text(kept.read_text().replace('"fd_digits": 2', '"fd_digits": 1'))
    with pytest.raises(DamagedFileError):
        claims_page.check_page(folder, page)


def test_evidence_adds_up_over_machines(plan: Plan, tmp_path: Path, config: Experiment) -> None:
    folder, page = tmp_path / "docs/claims", tmp_path / "docs/claims.md"
    claims_page.build(plan, folder, page)
    before = page.read_text()
    for node in (*plan.claimed("single"), plan.latency):  # another machine has not made these
        node.manifest.unlink()
    plan.claims.unlink()
    claims_page.build(plan, folder, page)
    assert page.read_text() == before
    assert not plan.claims.exists()
    other = Plan(config.model_copy(update={"seed": 7}), results=tmp_path / "results")  # other settings: nothing stays
    with pytest.raises(MissingFileError, match="Nothing that the claims need"):
        claims_page.build(other, folder, page)
    assert page.read_text() == before


def test_claim_without_results_says_so(plan: Plan, tmp_path: Path) -> None:
    for node in plan.claimed("msd4-equal-total"):
        node.manifest.unlink()
    plan.claimed("msd4")[2].manifest.unlink()
    claims_page.build(plan, tmp_path / "docs/claims", tmp_path / "docs/claims.md")
    page = page_of(tmp_path / "docs")
    assert "`msd4-equal-total` v. `single`: not run" in page
    assert "(2 of 3 seeds)" in page
    assert [j.verdict for j in read_claims(tmp_path / "docs/claims/mnist").judged][2] == "not run"


def test_mixed_metrics_are_refused(plan: Plan, tmp_path: Path) -> None:
    node = plan.claimed("msd4")[1]
    results = Manifest.read(node.manifest).results
    results["metric"]["features_sha256"] = "0" * 64
    Manifest.write(node.manifest, kind="evaluate", settings={}, results=results)
    with pytest.raises(DamagedFileError, match="measured differently"):
        claims_page.build(plan, tmp_path / "docs/claims", tmp_path / "docs/claims.md")


def test_unknown_variant_in_a_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "claims.yaml"
    overlay.write_text("claims: [{number: '1', claim: x, paper: y, expected: [[msd44, single]]}]")
    assert main(["params", "--configfile", str(overlay)]) == 2
    assert "claims.1: no variant 'msd44'; did you mean 'msd4'?" in capsys.readouterr().err


def test_the_toy_stands_on_the_page_too(plan: Plan, tmp_path: Path) -> None:
    kept = tmp_path / "docs/claims"
    kept.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "docs/claims/toy2d.json", kept)
    claims_page.build(plan, kept, tmp_path / "docs/claims.md")
    page = page_of(tmp_path / "docs")
    assert "## The 2-D toy\n\n**When do many students pay?**" in page
    assert claims_page.check_page(kept, tmp_path / "docs/claims.md") == 10


def test_committed_page_is_what_its_manifests_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert claims_page.check_page() > 0
