"""Every prompt has exactly one student, the same in any company; parts of training prompts are equally large."""

from __future__ import annotations

import json
import unicodedata
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from msd.config import TEXT_PARTITION, Hashed, Quadrants, TextKMeans, TextPartitionSpec
from msd.errors import DamagedFileError, DataError, MissingFileError, PartitionError
from msd.partition import text_fit
from msd.partition.text_fit import balance_of, fit_router
from msd.partition.text_router import TextRouter
from msd.store import digest, read_json, sha256_file

QUADRANTS, KMEANS, HASH = Quadrants(), TextKMeans(kind="text-kmeans"), Hashed(kind="hash")
ODD = ["", " ", "a" * 200_000, "\0\x1b[31m\r\n", "\ud800 half a pair", "🦒" * 50, "\u202egnp.exe", "ﬁ ŉ İ ß", "猫"]


def embeddings_of(count: int, width: int = 12, seed: int = 0) -> np.ndarray:
    """Unequal clusters with a large common mean, as text encoders give them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, width)) * 2 + 5
    owner = rng.choice(7, size=count, p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02])
    return (centres[owner] + rng.normal(size=(count, width))).astype(np.float32)


def prompts_of(count: int) -> list[str]:
    return [f"a photo of {i} giraffes" for i in range(count)]


def sizes_of(router: TextRouter) -> list[int]:
    assert router.balance is not None
    return router.balance["sizes"]


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
@pytest.mark.parametrize(("count", "students"), [(1, 1), (5, 1), (2, 2), (7, 2), (4, 4), (9, 4), (10, 4), (503, 4)])
def test_parts_are_of_sizes_within_one(spec: TextPartitionSpec, count: int, students: int) -> None:
    sizes = sizes_of(fit_router(embeddings_of(count), spec, students))
    assert sum(sizes) == count
    assert len(sizes) == students
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("students", [3, 8, 24])
def test_kmeans_is_balanced_for_any_number_of_students(students: int) -> None:
    for count in (students, students + 1, 3 * students + 2, 2000):
        sizes = sizes_of(fit_router(embeddings_of(count), KMEANS, students))
        assert max(sizes) - min(sizes) <= 1


def test_quadrants_are_medians_of_principal_components() -> None:
    embeddings = embeddings_of(2000)
    centred = embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)
    _u, _s, directions = np.linalg.svd(centred, full_matrices=False)
    first, second = (embeddings @ (v * np.sign(v[np.abs(v).argmax()])) for v in directions[:2])
    upper = first > np.median(first)
    expected = 2 * upper + np.where(upper, second > np.median(second[upper]), second > np.median(second[~upper]))
    found = fit_router(embeddings, QUADRANTS, 4).by_embedding(embeddings)
    assert (found == expected).mean() > 0.999
    two = fit_router(embeddings, QUADRANTS, 2).by_embedding(embeddings)
    assert (two == found // 2).all()


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
def test_fits_are_reproducible_and_leave_the_global_generator_alone(spec: TextPartitionSpec) -> None:
    embeddings = embeddings_of(800)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    one, other = (fit_router(embeddings, spec, 4) for _ in range(2))
    assert all(one.tensors[name].tobytes() == other.tensors[name].tobytes() for name in one.tensors)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_kmeans_recovers_planted_clusters_in_canonical_order() -> None:
    rng = np.random.default_rng(3)
    owner = rng.permutation(np.arange(60) % 3)
    embeddings = (np.eye(3)[owner] * 10 + rng.normal(size=(60, 3))).astype(np.float32)
    first = [owner.tolist().index(k) for k in range(3)]
    expected = np.argsort(np.argsort(first))[owner]
    for seed in range(4):
        router = fit_router(embeddings, TextKMeans(kind="text-kmeans", seed=seed), 3)
        assert (router.by_embedding(embeddings) == expected).all()


def test_kmeans_is_balanced_where_clusters_are_not_and_nearest_centre_would_not_be() -> None:
    embeddings = embeddings_of(20_000)
    router = fit_router(embeddings, KMEANS, 4)
    assert router.balance is not None
    assert router.balance["largest_minus_smallest_points"] <= 0.1
    nearest = balance_of(cdist(embeddings, router.tensors["centres"]).argmin(axis=1), 4)
    assert nearest["largest_minus_smallest_points"] > 2


def test_rows_move_along_a_chain_of_clusters() -> None:
    embeddings = np.concatenate([np.linspace(10 * i, 10 * i + 1, n) for i, n in enumerate((700, 50, 150, 100))])
    router = fit_router(embeddings[:, None].astype(np.float32), KMEANS, 4)
    assert sizes_of(router) == [250] * 4
    assert all(a <= b for a, b in pairwise(router.by_embedding(embeddings[:, None])))


def test_offsets_give_the_cheapest_balanced_assignment() -> None:
    embeddings = embeddings_of(200)
    router = fit_router(embeddings, KMEANS, 4)
    cost = cdist(embeddings, router.tensors["centres"], "sqeuclidean")
    rows, places = linear_sum_assignment(np.repeat(cost, 50, axis=1))
    cheapest = np.repeat(cost, 50, axis=1)[rows, places].sum()
    assert cost[np.arange(200), router.by_embedding(embeddings)].sum() == pytest.approx(cheapest, rel=1e-9)


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
def test_more_prompts_than_the_sample_are_balanced_all_the_same(
    spec: TextPartitionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_fit, "SAMPLE", 500)
    sizes = sizes_of(fit_router(embeddings_of(30_000), spec, 4))
    assert max(sizes) - min(sizes) <= 30


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
def test_embeddings_may_be_half_precision_on_disk(spec: TextPartitionSpec, tmp_path: Path) -> None:
    half = embeddings_of(3000).astype(np.float16)
    np.save(tmp_path / "e.npy", half)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    router = fit_router(mapped, spec, 4)
    assert (router.by_embedding(mapped) == router.by_embedding(half.astype(np.float32))).all()
    assert max(sizes_of(router)) - min(sizes_of(router)) <= 3


@pytest.mark.parametrize("students", [3, 8])
def test_quadrants_are_for_one_two_or_four(students: int) -> None:
    with pytest.raises(PartitionError, match=f"no quadrants for {students} students") as refused:
        fit_router(embeddings_of(100), QUADRANTS, students)
    assert "kmeans" in refused.value.todo


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
def test_what_cannot_be_fitted_is_refused(spec: TextPartitionSpec) -> None:
    with pytest.raises(PartitionError, match="4 students cannot share 3 prompts"):
        fit_router(embeddings_of(3), spec, 4)
    with pytest.raises(PartitionError, match="equally large") as refused:
        fit_router(np.repeat(embeddings_of(2), [300, 5], axis=0), spec, 2)
    assert "duplicates" in refused.value.todo
    with pytest.raises(DataError, match="must be a matrix"):
        fit_router(None, spec, 4)
    broken = embeddings_of(9000)
    broken[8500, 3] = np.inf
    with pytest.raises(DataError, match="row 8500"):
        fit_router(broken, spec, 4)


def exact_owner(router: TextRouter, row: np.ndarray) -> int:
    """By fractions, without any rounding after the tensors."""
    tensors = {name: [[Fraction(float(x)) for x in r] for r in np.atleast_2d(t)] for name, t in router.tensors.items()}
    embedding = [Fraction(float(x)) for x in row]
    if router.spec.kind == "text-kmeans":
        (offsets,) = tensors["offsets"]
        squares = [sum((e - c) ** 2 for e, c in zip(embedding, centre, strict=True)) for centre in tensors["centres"]]
        costs = [square + offset for square, offset in zip(squares, offsets, strict=True)]
        return costs.index(min(costs))
    (thresholds,), node = tensors["thresholds"], 0
    for direction in tensors["directions"]:
        score = sum(e * d for e, d in zip(embedding, direction, strict=True))
        node = 2 * node + 1 + (score > thresholds[node])
    return node - len(thresholds)


def on_borders(router: TextRouter, rng: np.random.Generator) -> np.ndarray:
    """Embeddings so near to the border of two parts that float32 products err, and some beyond float32's squares."""
    rows = rng.normal(size=(300, 12)).astype(np.float32) * 3 + 5
    others = rng.permutation(rows)
    for _ in range(40):  # bisection between two embeddings of different owners
        middle = ((rows.astype(np.float64) + others) / 2).astype(np.float32)
        same = router.by_embedding(middle) == router.by_embedding(rows)
        rows, others = np.where(same[:, None], middle, rows), np.where(same[:, None], others, middle)
    return np.concatenate([rows, others, rows * np.float32(1e37), rows * np.float32(1e-42)])


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
def test_owner_does_not_depend_on_the_batch(spec: TextPartitionSpec) -> None:
    rng = np.random.default_rng(8)
    router = fit_router(embeddings_of(5000), spec, 4)
    rows = on_borders(router, rng)
    together = router.by_embedding(rows)
    assert sorted(set(together.tolist())) == [0, 1, 2, 3]
    assert together.tolist() == [router.by_embedding(row[None])[0] for row in rows]
    order = rng.permutation(len(rows))
    assert (router.by_embedding(np.asfortranarray(rows[order])) == together[order]).all()
    exact = np.array([exact_owner(router, row) for row in rows])
    assert (exact == together).mean() > 0.99  # the constants of kmeans are rounded, so borders lie within 1e-15


def test_equals_go_to_the_lower_student() -> None:
    centres = np.array([[-1, 0], [1, 0], [0, 1]], dtype=np.float32)
    router = TextRouter(KMEANS, 3, {"centres": centres, "offsets": np.zeros(3)}, 2)
    rows = np.array([[0, -1], [0, 0], [1, 1], [-1, 1], [3, 3]], dtype=np.float32)
    assert router.by_embedding(rows).tolist() == [0, 0, 1, 0, 1]
    halves = {"directions": np.eye(2, dtype=np.float32), "thresholds": np.array([0.5, 0.0, 1.0])}
    four = TextRouter(QUADRANTS, 4, halves, 2)
    at_thresholds = np.array([[0.5, 0], [0.5, 1e-30], [0.6, 1], [0.6, 1.1]], dtype=np.float32)
    assert four.by_embedding(at_thresholds).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("students", [1, 4])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(spec: TextPartitionSpec, students: int, broken: float) -> None:
    router = fit_router(embeddings_of(500), spec, students)
    rows = embeddings_of(700)
    rows[[600, 650], 7] = broken
    with pytest.raises(DataError, match="not finite") as refused:
        router(rows, prompts_of(700))
    assert "row 600" in refused.value.where


@pytest.mark.parametrize("spec", [QUADRANTS, KMEANS], ids=lambda spec: spec.kind)
def test_embeddings_of_another_shape_are_refused(spec: TextPartitionSpec) -> None:
    router = fit_router(embeddings_of(100), spec, 4)
    for rows in (embeddings_of(5, 11), embeddings_of(5)[0]):
        with pytest.raises(DataError, match="do not fit"):
            router(rows, prompts_of(len(rows)))
    for missing in (None, embeddings_of(4)):
        with pytest.raises(DataError, match="one embedding for each prompt"):
            router(missing, prompts_of(5))
    assert router(embeddings_of(0), []).shape == (0,)


def test_hash_gives_every_text_one_student() -> None:
    router = fit_router(None, HASH, 4)
    owners = router(None, ODD)
    assert owners.dtype == np.int64
    assert set(owners.tolist()) <= {0, 1, 2, 3}
    assert [router(None, [prompt])[0] for prompt in ODD] == owners.tolist()
    assert router(None, []).shape == (0,)
    assert (router(embeddings_of(9), ODD) == owners).all()


def test_hash_does_not_see_spelling_of_spaces_case_and_accents() -> None:
    router = fit_router(None, HASH, 1000)
    for same in (
        ["A cat  on\ta mat", " a cat on a mat\n", "A CAT ON A MAT"],
        ["crème brûlée", unicodedata.normalize("NFD", "Crème Brûlée")],
        ["Straße", "STRASSE"],
    ):
        assert len(set(router(None, same).tolist())) == 1
    assert router(None, ["a cat on a mat"]) != router(None, ["a cat on a hat"])


def test_hash_is_known_and_uniform_and_a_function_of_the_seed() -> None:
    router = fit_router(None, HASH, 4, prompts_of(20_000))
    assert router(None, prompts_of(8)).tolist() == KNOWN
    assert router.balance is not None
    assert router.balance["largest_minus_smallest_points"] < 2
    other = fit_router(None, Hashed(kind="hash", seed=1), 4)
    same = router(None, prompts_of(4000)) == other(None, prompts_of(4000))
    assert 0.2 < same.mean() < 0.3


KNOWN = [0, 3, 1, 1, 3, 1, 3, 0]  # owners once and for all: a saved router must not change


def routers() -> dict[str, TextRouter]:
    specs: list[TextPartitionSpec] = [QUADRANTS, KMEANS, HASH]
    return {spec.kind: fit_router(embeddings_of(400), spec, 4, prompts_of(400)) for spec in specs}


@pytest.mark.parametrize("kind", ["quadrants", "text-kmeans", "hash"])
def test_a_saved_router_is_the_same(kind: str, tmp_path: Path) -> None:
    router = routers()[kind]
    router.save(tmp_path / "one")
    loaded = TextRouter.load(tmp_path / "one")
    rows = embeddings_of(300, seed=1)
    assert (loaded(rows, prompts_of(300)) == router(rows, prompts_of(300))).all()
    assert (loaded.spec, loaded.students, loaded.width, loaded.balance) == (
        router.spec,
        router.students,
        router.width,
        router.balance,
    )
    loaded.save(tmp_path / "other")
    for name in ("router.json", "router.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["router.json", "router.safetensors"]
    written = read_json(tmp_path / "one/router.json")
    assert (written["schema"], written["kind"], written["students"]) == (1, kind, 4)
    assert sum(written["balance"]["sizes"]) == 400


@pytest.mark.parametrize("kind", ["quadrants", "text-kmeans", "hash"])
def test_every_changed_byte_is_noticed(kind: str, tmp_path: Path) -> None:
    routers()[kind].save(tmp_path)
    for name in ("router.json", "router.safetensors"):
        path = tmp_path / name
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(DamagedFileError):
                TextRouter.load(tmp_path)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DamagedFileError):
            TextRouter.load(tmp_path)
        path.write_bytes(whole)
    TextRouter.load(tmp_path)


def sign(folder: Path, **changed: Any) -> None:
    """Change the router's description as someone would who also corrects its digests."""
    body = {**read_json(folder / "router.json"), **changed}
    body["tensors_sha256"] = sha256_file(folder / "router.safetensors")
    body.pop("sha256")
    (folder / "router.json").write_text(json.dumps({**body, "sha256": digest(body)}))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"schema": 2}, "expected ('msd-text-router', 1)"),
        ({"format": "msd-network"}, "expected ('msd-text-router', 1)"),
        ({"kind": "nearest"}, "ValidationError"),
        ({"settings": {"seed": 0, "metric": "cosine"}}, "ValidationError"),
        ({"settings": None}, "TypeError"),
        ({"students": 5}, "expected"),
        ({"students": "four"}, "TypeError"),
        ({"width": 11}, "expected"),
        ({"kind": "quadrants", "settings": {}}, "expected"),
    ],
)
def test_a_foreign_description_is_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    routers()["text-kmeans"].save(tmp_path)
    sign(tmp_path, **changed)
    with pytest.raises(DamagedFileError) as refused:
        TextRouter.load(tmp_path)
    assert why in refused.value.why


@pytest.mark.parametrize("text", ["[]", "null", "{}", "7", '{"format": "msd-text-router", "schema": 1}'])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    routers()["text-kmeans"].save(tmp_path)
    (tmp_path / "router.json").write_text(text)
    with pytest.raises(DamagedFileError, match="not a router of prompts"):
        TextRouter.load(tmp_path)


def test_tensors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    router = routers()["text-kmeans"]
    router.save(tmp_path)
    save_file({**router.tensors, "offsets": np.array([0, 0, np.nan, 0])}, tmp_path / "router.safetensors")
    sign(tmp_path)
    with pytest.raises(DamagedFileError) as refused:
        TextRouter.load(tmp_path)
    assert "not finite" in refused.value.why


def test_files_of_two_routers_do_not_load_together(tmp_path: Path) -> None:
    routers()["text-kmeans"].save(tmp_path)
    old = (tmp_path / "router.json").read_bytes()
    fit_router(embeddings_of(400, seed=2), KMEANS, 4).save(tmp_path)
    (tmp_path / "router.json").write_bytes(old)  # as if killed between the two
    with pytest.raises(DamagedFileError):
        TextRouter.load(tmp_path)
    for name in ("router.safetensors", "router.json"):
        (tmp_path / name).unlink()
        with pytest.raises(MissingFileError):
            TextRouter.load(tmp_path)


def test_settings() -> None:
    assert TEXT_PARTITION.validate_python({"kind": "text-kmeans"}) == KMEANS
    assert TEXT_PARTITION.validate_python({"kind": "hash", "seed": 3}) == Hashed(kind="hash", seed=3)
    for wrong in ({"kind": "quadrants", "seed": 1}, {"kind": "random"}, {"kind": "hash", "seed": "x"}):
        with pytest.raises(ValidationError):
            TEXT_PARTITION.validate_python(wrong)
