"""The 2-D toy: its teacher is exact, its stacked students learn what ``DmStep`` teaches, and its verdicts follow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from report_fixtures import experiment, make_results
from tiny import ROOT
from torch import Tensor
from torch.nn import functional as F

from msd import config
from msd.config import load
from msd.diffusion.grids import karras_sigmas
from msd.distill.dm import DmStep, Pairs
from msd.draws import Draws
from msd.errors import ConfigError, MissingFileError
from msd.networks import Backbone
from msd.networks.precond import SIGMA_DATA
from msd.plan import Plan
from msd.report import toy as figures
from msd.report.build import build_report
from msd.store import Manifest, read_json
from msd.toy import measure, summary
from msd.toy.cells import Cell, finish, path_of
from msd.toy.compare import comparison
from msd.toy.distribution import Mixture, pinwheel
from msd.toy.networks import FakeScores, Stack, Students, parameters
from msd.toy.run import run_figure, run_map
from msd.toy.train import ToyStep, flops_per_image, make_pairs, make_start

SMALL = (
    "toy.dm.images=256",
    "toy.dm.batch_size=16",
    "toy.dm.regression={pairs: 64, batch_size: 16, sampler: {num_steps: 8}}",
    "toy.start.images=256",
    "toy.measure={noises: 40, directions: 8, sampler: {num_steps: 8}}",
    "toy.map={widths: [3, 6], images: [256, 512], seeds: [0, 1, 2]}",
    "toy.students=[1, 2]",
)


def quiet(*_: Any) -> None:
    """No progress."""


def plan(folder: Path, *settings: str) -> Plan:
    return Plan(load(ROOT / "params.yaml", (), [*SMALL, *settings]), results=folder)


@pytest.fixture(scope="module")
def toy() -> config.Toy:
    found = load(ROOT / "params.yaml", (), SMALL).toy
    assert found is not None
    return found


@pytest.fixture(scope="module")
def teacher(toy: config.Toy) -> Mixture:
    return pinwheel(toy.distribution)


def step_of(toy: config.Toy, teacher: Mixture, widths: list[int], students: int) -> ToyStep:
    assert toy.dm.regression is not None
    pairs = make_pairs(teacher, toy.dm.regression, toy.seeds)
    return ToyStep(toy, teacher, widths, students, pairs, make_start(toy, widths, pairs))


# the teacher


def test_the_data_have_the_standard_deviation_that_networks_expect(teacher: Mixture) -> None:
    draws = Draws(0)
    mode = draws.integers("mode", 0, 40_000, 0, teacher.means.shape[1])
    cond = torch.arange(40_000) % len(teacher.means)
    x = teacher.means[cond, mode] + teacher.spreads[cond, mode, None] * draws.normal("x", 0, (40_000, 2))
    assert x.std(dim=0).mean() == pytest.approx(SIGMA_DATA, rel=0.01)


def test_neighbouring_conditions_are_alike(teacher: Mixture) -> None:
    apart = (teacher.means[0] - teacher.means).norm(dim=-1).mean(-1)
    assert (apart[1:5].diff() > 0).all()
    assert apart[1] == pytest.approx(float(apart[-1]), rel=1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 20.0])
def test_the_closed_form_is_the_gradient_of_the_log_density(teacher: Mixture, sigma: float) -> None:
    wide = Mixture(teacher.means.double(), teacher.spreads.double())
    cond = torch.arange(64) % 8
    levels = torch.full((64,), sigma, dtype=torch.float64)
    clean = wide.means[cond, torch.arange(64) % 5]
    x = (clean + sigma * Draws(1).normal("x", 0, (64, 2)).double()).requires_grad_()
    (score,) = torch.autograd.grad(wide.log_density(x, levels, cond).sum(), x)
    denoised = wide.denoise(x, levels, cond)
    assert torch.allclose(x + sigma**2 * score, denoised, rtol=1e-7, atol=1e-9)
    single = teacher.denoise(x.float(), levels.float(), cond)
    assert torch.allclose(single.double(), denoised, atol=2e-3)


def test_the_density_integrates_to_one(teacher: Mixture) -> None:
    line = torch.linspace(-3, 3, 400, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    wide = Mixture(teacher.means.double(), teacher.spreads.double())
    sigma = torch.full((len(x),), 0.1, dtype=torch.float64)
    total = wide.log_density(x, sigma, torch.zeros(len(x), dtype=torch.int64)).exp().sum() * (line[1] - line[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_the_target_is_that_of_a_much_finer_grid(teacher: Mixture) -> None:
    shipped = load(ROOT / "params.yaml").toy
    assert shipped is not None
    noise, cond = Draws(2).normal("z", 0, (200, 2)), torch.arange(200) % 8
    steps = shipped.measure.sampler.num_steps
    fine = teacher.sample(noise, cond, config.Sampler(num_steps=4 * steps))
    errors = {
        n: float((teacher.sample(noise, cond, config.Sampler(num_steps=n)) - fine).abs().sum(-1).mean())
        for n in (8, steps)
    }
    assert errors[steps] < 0.002 < errors[8]


# networks


def test_a_narrow_network_in_a_wide_stack_is_the_one_alone() -> None:
    x = Draws(3).normal("x", 0, (1, 10, 4))
    stack, alone = Stack(4, 2, 2, [9, 3], [0, 5], "r"), Stack(4, 2, 2, [3], [5], "r")
    for _ in range(3):
        for net, own in ((stack, x.expand(2, -1, -1)), (alone, x)):
            net.zero_grad()
            net(own).square().sum().backward()
            with torch.no_grad():
                for p in net.parameters():
                    assert p.grad is not None
                    p -= 0.1 * p.grad
    assert torch.allclose(stack(x.expand(2, -1, -1))[1], alone(x)[0], atol=1e-6)
    inner = stack.weights[1][1]
    assert inner[:3, :3].all()
    assert not inner[3:].any()
    assert not inner[:, 3:].any()
    assert parameters(4, 2, 2, 3) == sum(p.numel() for p in alone.parameters())


def test_a_fake_score_begins_as_the_teacher(teacher: Mixture) -> None:
    fake = FakeScores(8, 2, [5, 5], [0, 1])
    x, sigma, cond = Draws(0).normal("x", 0, (2, 6, 2)), torch.full((2, 6), 0.3), torch.arange(12).reshape(2, 6) % 8
    exact = teacher.denoise(x, sigma, cond)
    assert torch.equal(fake.denoise(x, sigma, cond, exact), exact)


# training


class Point(Backbone):
    """One network of a stack, or the teacher, behind the seam of all networks: images of two channels, one pixel."""

    image_shape = (2, 1, 1)
    num_conditions = 8
    known_sigmas = (0.002, 80.0)
    sigma_data = SIGMA_DATA
    student_level = 1.0
    features_shape = (0, 0)

    def __init__(self, teacher: Mixture, net: Students | FakeScores | None = None) -> None:
        super().__init__()
        self.exact, self.net = teacher, net
        self.register_buffer("noise_grid", karras_sigmas(1000).float().flip(0))

    def denoise(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        points, levels = x.flatten(1), level.expand(len(x))
        if isinstance(self.net, Students):
            return self.net.generate(points[None], cond[None])[0].reshape(x.shape)
        denoised = self.exact.denoise(points, levels, cond)
        if self.net is not None:
            denoised = self.net.denoise(points[None], levels[None], cond[None], denoised[None])[0]
        return denoised.reshape(x.shape)

    def denoise_unconditional(self, x: Tensor, level: Tensor) -> Tensor:
        raise NotImplementedError

    def denoise_with_features(self, x: Tensor, level: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def features(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        raise NotImplementedError

    def condition_embeddings(self) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("ratio", [1, 2])
def test_a_stack_learns_what_dmstep_teaches_each_student_alone(toy: config.Toy, teacher: Mixture, ratio: int) -> None:
    toy = toy.model_copy(update={"dm": toy.dm.model_copy(update={"two_time_scale_ratio": ratio})})
    stack = step_of(toy, teacher, [3, 6], 2)
    chosen = [(width, seed, part) for width in range(2) for seed in (0, 2) for part in range(2)]
    alone = []
    for width, seed, part in chosen:
        pairs = stack.pairs
        start = make_start(
            toy.model_copy(update={"seeds": [toy.seeds[seed]] * 3}), [stack.widths[width]], _of(pairs, seed)
        )
        net = Students(8, toy.layers, [stack.widths[width]], [toy.seeds[seed]])
        with torch.no_grad():
            for mine, first in zip(net.parameters(), start.parameters(), strict=True):
                mine.copy_(first[:1])
        fake = FakeScores(8, toy.layers, [toy.fake_score_width], [toy.seeds[seed]])
        images = Pairs(pairs.noise[seed, ..., None, None], pairs.points[seed, ..., None, None], pairs.cond)
        alone.append(
            DmStep(
                Point(teacher, net),
                Point(teacher).requires_grad_(False),
                Point(teacher, fake),
                stack.parts[part],
                toy.dm,
                Draws(toy.seeds[seed]),
                pairs=images,
            )
        )
    n = toy.dm.batch_size
    before = stack.net.stack.weights[0].clone()
    for start_image in range(0, 6 * n, n):
        stack(start_image)
        for step in alone:
            step(start_image)
    assert not torch.equal(before, stack.net.stack.weights[0])
    noise = measure.evaluation_noise(toy.measure, 8)
    points = stack.evaluate(noise)
    for (width, seed, part), step in zip(chosen, alone, strict=True):
        c = int(stack.parts[part][0])
        with step.emas["student"].applied():
            expected = step.student.generate(noise[c, ..., None, None], torch.full((noise.shape[1],), c)).flatten(1)
        assert torch.allclose(points[width, seed, c], expected, atol=1e-5)


def _of(pairs: Any, seed: int) -> Any:
    """The pairs of one seed, three times over."""
    return type(pairs)(pairs.noise[[seed] * 3], pairs.points[[seed] * 3], pairs.cond)


def test_the_dm_gradient_leads_to_the_teachers_points(toy: config.Toy, teacher: Mixture) -> None:
    """With an exact fake score of points that lie beside their mode, a step along −g brings them nearer."""
    from msd.distill.losses import dm_loss

    cond = torch.zeros(200, dtype=torch.int64)
    target = teacher.means[0, 0].expand(200, 2)
    beside = target + torch.tensor([0.05, -0.03]) + 0.01 * Draws(0).normal("x", 0, (200, 2))
    generated = Mixture(beside.mean(0).reshape(1, 1, 2), torch.full((1, 1), 0.01))
    x = beside.clone().requires_grad_()
    sigma = torch.full((200,), 0.03)
    noised = x.detach() + 0.03 * Draws(0).normal("noise", 0, (200, 2))
    scores = teacher.denoise(noised, sigma, cond), generated.denoise(noised, sigma, cond)
    loss, _ = dm_loss(*(t[..., None, None] for t in (x, *scores)))
    loss.backward()
    assert x.grad is not None
    wanted, got = (target - beside).mean(0), -x.grad.mean(0)
    assert F.cosine_similarity(wanted, got, dim=0) > 0.95
    moved = beside + 0.05 * F.normalize(got, dim=0)
    assert (moved - target).mean(0).norm() < 0.5 * wanted.norm()


def test_l1_falls_with_training(toy: config.Toy, teacher: Mixture) -> None:
    step = step_of(toy, teacher, [16], 2)
    noise = measure.evaluation_noise(toy.measure, 8)
    target = measure.targets(teacher, noise, toy.measure)
    found = []
    for updates in (0, 300):
        for start in range(0, updates * 16, 16):
            step(start)
        points = step.evaluate(noise)
        found.append((measure.l1(points, target).mean(-1), measure.sliced_wasserstein(points, target, 8).mean(-1)))
    step.check()
    for before, after in zip(*found, strict=True):
        assert (after < 0.9 * before).all()


def test_flops_are_those_that_torch_counts(toy: config.Toy, teacher: Mixture) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    step = step_of(toy, teacher, [6], 1)
    counter = FlopCounterMode(display=False)
    with counter:
        step(0)
    counted = counter.get_total_flops() / len(toy.seeds) / toy.dm.batch_size
    # ours counts biases, and the first layer's gradient towards its input, which torch does not need
    assert counted < flops_per_image(toy, 6) < 1.6 * counted


# distances and verdicts


def test_distances_are_what_they_say() -> None:
    x = Draws(0).normal("x", 0, (3, 50, 2))
    shift = torch.tensor([0.3, -0.4])
    assert torch.allclose(measure.l1(x + shift, x), torch.full((3,), 0.7))
    # the mean over directions of |shift · direction| is 2/π of its length
    assert torch.allclose(measure.sliced_wasserstein(x + shift, x, 64), torch.full((3,), 0.5 * 2 / torch.pi), rtol=1e-2)
    shuffled = x[:, torch.arange(49, -1, -1)]
    assert torch.allclose(measure.sliced_wasserstein(shuffled, x, 8), torch.zeros(3), atol=1e-6)
    assert (measure.l1(shuffled, x) > 0.5).all()


def row(students: int, l1: list[float]) -> dict[str, Any]:
    mean = sum(l1) / len(l1)
    return {"students": students, "width": 8, "images_total": 1000, "flops": 7, "l1": l1, "l1_mean": mean}


def test_verdicts() -> None:
    clear = comparison([row(1, [0.2, 0.21, 0.2]), row(2, [0.1, 0.105, 0.1]), row(4, [0.3, 0.3, 0.3])])
    assert (clear["best_students"], clear["best_many"], clear["tie"]) == (2, 2, False)
    assert clear["ratio"] == pytest.approx(0.5, abs=1e-3)
    unclear = comparison([row(1, [0.2, 0.3, 0.1]), row(4, [0.3, 0.1, 0.15])])
    assert unclear["tie"]
    lost = comparison([row(1, [0.1, 0.1, 0.11]), row(4, [0.2, 0.21, 0.2])])
    assert (lost["best_students"], lost["best_many"], lost["tie"]) == (1, 4, False)


# runs


def test_finished_cells_are_kept(toy: config.Toy, tmp_path: Path) -> None:
    cells = [Cell(2, 3, 128), Cell(2, 6, 128), Cell(2, 3, 256)]
    seen: list[tuple[str, int, int]] = []
    first = finish(toy, cells[:2], tmp_path, lambda k, n, total, _: seen.append((k, n, total)))
    assert seen[-1] == ("K = 2 (1 of 1)", 128, 128)
    times = {cell: m.path.stat().st_mtime_ns for cell, m in first.items()}
    seen.clear()
    finish(toy, cells[:2], tmp_path, lambda *_: seen.append(("", 0, 0)))
    assert not seen
    path_of(toy, cells[1], tmp_path).unlink()
    again = finish(toy, cells, tmp_path, quiet)
    assert again[cells[0]].path.stat().st_mtime_ns == times[cells[0]]
    assert again[cells[1]].results["l1"] == pytest.approx(first[cells[1]].results["l1"], rel=1e-4)
    assert again[cells[2]].results["l1"] != again[cells[0]].results["l1"]
    other = toy.model_copy(update={"seeds": [0, 1, 3]})
    assert path_of(other, cells[0], tmp_path) != path_of(toy, cells[0], tmp_path)


def test_a_killed_run_keeps_what_it_has(toy: config.Toy, tmp_path: Path) -> None:
    cells = [Cell(1, 3, 32), Cell(1, 3, 256)]

    def kill(_: str, done: int, *__: Any) -> None:
        if done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(toy, cells, tmp_path, kill)
    assert [path_of(toy, cell, tmp_path).exists() for cell in cells] == [True, False]
    assert finish(toy, cells, tmp_path, quiet)[cells[1]].results["images_total"] == 256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The figure and the map of a very small toy."""
    found = plan(tmp_path_factory.mktemp("results"))
    assert found.toy is not None
    assert found.toy_map is not None
    run_figure(found.toy, found.toy_cells, quiet)
    run_map(found.toy_map, found.toy_cells, quiet)
    return found


def test_the_map_is_complete(made: Plan) -> None:
    assert made.toy_map is not None
    value = read_json(Manifest.read(made.toy_map.manifest).file("map"))
    assert {(c["width"], c["images_total"], c["students"]) for c in value["cells"]} == {
        (w, i, k) for w in (3, 6) for i in (256, 512) for k in (1, 2)
    }
    by_place: dict[tuple[int, int], set[int]] = {}
    for cell in value["cells"]:
        by_place.setdefault((cell["width"], cell["images_total"]), set()).add(cell["flops"])
        assert len(cell["l1"]) == 3
        assert cell["l1_interval"][0] < cell["l1_mean"] < cell["l1_interval"][1]
    assert all(len(flops) == 1 for flops in by_place.values()), "equal total compute"
    text = "\n".join(summary(value))
    assert "Of 4 places" in text
    assert "Width 3" in text


def test_the_words_follow_the_numbers() -> None:
    def place(width: int, images: int, ratio: float, tie: bool) -> dict[str, Any]:
        interval = [ratio - 0.05, ratio + 0.05]
        return {
            "width": width,
            "images_total": images,
            "ratio": ratio,
            "ratio_interval": interval,
            "tie": tie,
            "best_many": 4,
        }

    value = {
        "seeds": [0, 1, 2], "budgets": [1000, 2000], "students": [1, 4], "widths": [4, 8], "cpu_seconds": 120,
        "machine": {"cpu": "a cpu"}, "command": "msd toy --map", "settings_digest": "0123",
        "map": [place(4, 1000, 1.2, False), place(4, 2000, 0.8, False), place(8, 1000, 1.3, False),
                place(8, 2000, 0.99, True)],
    }  # fmt: skip
    text = "\n".join(summary(value))
    assert "in 1 and farther in 2; in 1 the 95 %" in text
    assert "Width 4: many students win at 2 k images and more; most at 2 k, K = 4, ratio 0.80" in text
    assert "Width 8: no K > 1 wins beyond a tie" in text


def test_pictures_and_data_for_the_docs(made: Plan, tmp_path: Path) -> None:
    assert made.toy is not None
    assert made.toy_map is not None
    paths = figures.publish(made.toy, made.toy_map, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        "claims/toy2d.json", "images/toy2d.png", "images/toy2d-l1.png", "images/toy2d-map.png",
    ]  # fmt: skip
    value = json.loads(paths[0].read_text())
    assert [r["students"] for r in value["figure"]] == [1, 2]
    for path in paths[1:]:
        assert len(Image.open(path).convert("L").getcolors() or []) > 20
    again = figures.figure(Manifest.read(made.toy.manifest), tmp_path / "again.png")
    assert again.path.read_bytes() == paths[1].read_bytes()
    assert "3 seeds" in again.caption


def test_docs_need_the_runs(tmp_path: Path) -> None:
    nothing = plan(tmp_path)
    assert nothing.toy is not None
    assert nothing.toy_map is not None
    with pytest.raises(MissingFileError):
        figures.publish(nothing.toy, nothing.toy_map, tmp_path)


def test_the_toy_opens_the_report(made: Plan, toy: config.Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no claims are kept, which would come first
    found = make_results(tmp_path / "results", experiment({"pair": {"students": 2}}).model_copy(update={"toy": toy}))
    assert found.toy is not None
    run_figure(found.toy, made.toy_cells, quiet)
    report = build_report(found)
    assert report.file("figures/toy.png").stat().st_size > 10_000
    titles = re.findall("<h2>(.*?)</h2>", report.file("report.html").read_text())
    assert titles[:2] == ["The idea in two dimensions", "Every variant at a glance"]
    assert len(report.body["inputs"]) == len(list(found))


# configuration


def test_the_plan_has_the_toy_as_a_node_of_its_own() -> None:
    whole, without = Plan(load(ROOT / "params.yaml")), Plan(load(ROOT / "params.yaml", (), ["toy=null"]))
    assert whole.toy is not None
    assert {n.manifest for n in whole} - {n.manifest for n in without} == {whole.toy.manifest}
    assert {n.manifest for n in without} <= {n.manifest for n in whole}
    assert without.toy is without.toy_map is None
    longer = Plan(load(ROOT / "params.yaml", (), ["toy.map.widths=[5]"]))
    assert longer.toy == whole.toy
    assert longer.toy_map != whole.toy_map


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("toy.widht=3", "toy.widht: unknown key; did you mean 'width'?"),
        ("toy.students=[1, 3]", "3 students cannot share 8 conditions"),
        ("toy.students=[2, 4]", "must name 1"),
        ("toy.seeds=[0, 1]", "at least 3 items"),
        ("toy.seeds=[0, 1, 1]", "seeds must name each once"),
        ("toy.dm.student.clip_norm=1", "tie them together"),
        ("toy.dm.regression=null", "dm.regression must be there"),
        ("toy.map.images=[100]", "100 cannot be shared"),
        ("toy.dm.teacher_guidance=2", "no guidance"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match="The configuration has 1 problem") as e:
        load(ROOT / "params.yaml", (), [setting])
    assert message in str(e.value)


def test_a_missing_file_of_the_toy_is_named() -> None:
    with pytest.raises(MissingFileError, match="no-such-toy"):
        load(ROOT / "params.yaml", (), ["toy=no-such-toy.yaml"])
