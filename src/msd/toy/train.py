"""Distribution matching of many toy students at once, with the losses, draws and optimisers of ``msd.distill``.

A student's draws depend on its seed alone, so students of one seed see the same noise whatever K is, and learn what
``distill.dm.DmStep`` would teach them one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msd import config
from msd.diffusion.grids import karras_sigmas
from msd.distill.losses import dm_loss, fake_score_loss, regression_loss
from msd.draws import BatchDraws, Draws
from msd.errors import DivergedError
from msd.networks.precond import GRID_STEPS, SIGMA_DATA
from msd.toy.distribution import Mixture
from msd.toy.networks import FakeScores, Students, parameters
from msd.training.ema import averages_of
from msd.training.step import Updater, learn


@dataclass(frozen=True)
class PairSet:
    """Regression pairs of every seed, of all conditions in turn.

    Attributes:
        noise, points: (S, P, 2) float32.
        cond: (P,) int64.
    """

    noise: Tensor
    points: Tensor
    cond: Tensor

    def rows(self, chosen: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (S, B, 2), conditions (S, B) and points (S, B, 2) of each seed's choice (B,)."""
        noise, points = (
            torch.stack([t[i] for t, i in zip(of, chosen, strict=True)]) for of in (self.noise, self.points)
        )
        return noise, torch.stack([self.cond[i] for i in chosen]), points


def make_pairs(teacher: Mixture, settings: config.Regression, seeds: Sequence[int]) -> PairSet:
    """Noise of each seed and the teacher's sample for it."""
    cond = torch.arange(settings.pairs) % len(teacher.means)
    noise = torch.stack([Draws(seed).normal("pairs/noise", 0, (settings.pairs, 2)) for seed in seeds])
    points = teacher.sample(noise.reshape(-1, 2), cond.repeat(len(seeds)), settings.sampler)
    return PairSet(noise, points.reshape(noise.shape), cond)


def _images(x: Tensor) -> Tensor:
    """(N, B, ...) → the shape that the losses ask for, (N·B, ..., 1, 1)."""
    return x.reshape(-1, *x.shape[2:], 1, 1)


def make_start(toy: config.Toy, widths: Sequence[int], pairs: PairSet) -> Students:
    """The network that the students of each width and seed begin as: (widths × seeds), the average over its way."""
    regression = toy.dm.regression
    assert regression is not None
    each = [(width, seed) for width in widths for seed in toy.seeds]
    net = Students(toy.distribution.conditions, toy.layers, [w for w, _ in each], [s for _, s in each])
    updater, (ema,) = Updater(net, toy.start.optimizer), averages_of(net, toy.dm, "start").values()
    draws, batch = [Draws(seed) for seed in toy.seeds], regression.batch_size
    for start in range(0, toy.start.images, batch):
        drawn = [of_seed.integers("start/pairs", start, batch, 0, len(pairs.cond)) for of_seed in draws]
        noise, cond, y = (_repeated(t, len(widths)) for t in pairs.rows(drawn))
        loss = regression_loss(_images(net.generate(noise, cond)), _images(y), regression.metric)
        learn([len(noise) * loss], [updater], [])
        ema.update(start + batch, batch)
    with ema.applied():
        return copy.deepcopy(net)


def _repeated(of_seed: Tensor, widths: int, students: int = 1) -> Tensor:
    """One row per seed → one per student, in the order of a stack."""
    return of_seed.repeat_interleave(students, dim=0).repeat(widths, *[1] * (of_seed.ndim - 1))


class ToyStep:
    """One update of K students for each width and seed.

    Args:
        toy: settings.
        teacher: the closed form.
        widths: of the students' hidden layers.
        students: K; student k owns the k-th of K runs of consecutive conditions.
        pairs: for ``toy.seeds``.
        start: the students' first weights, as ``make_start`` gives them.

    Attributes:
        parts: (K, C/K) conditions of each student.
        net: the students, width by width, then seed by seed, then part by part.
    """

    def __init__(
        self,
        toy: config.Toy,
        teacher: Mixture,
        widths: Sequence[int],
        students: int,
        pairs: PairSet,
        start: Students,
    ) -> None:
        conditions = toy.distribution.conditions
        self.settings, self.teacher, self.pairs = toy.dm, teacher, pairs
        self.widths, self.seeds, self.students = widths, toy.seeds, students
        self.draws = [Draws(seed) for seed in toy.seeds]
        self.parts = torch.arange(conditions).reshape(students, -1)
        each = [(width, seed) for width in widths for seed in toy.seeds for _ in range(students)]
        seeds = [seed for _, seed in each]
        self.net = Students(conditions, toy.layers, [width for width, _ in each], seeds)
        with torch.no_grad():
            for mine, first in zip(self.net.parameters(), start.parameters(), strict=True):
                mine.copy_(first.repeat_interleave(students, dim=0))
        self.fake_score = FakeScores(conditions, toy.layers, [toy.fake_score_width] * len(each), seeds)
        self.updaters = Updater(self.net, toy.dm.student), Updater(self.fake_score, toy.dm.fake_score)
        self.emas = averages_of(self.net, toy.dm, "student")
        self.grid = karras_sigmas(GRID_STEPS).float().flip(0)

    def __call__(self, start: int) -> None:
        """The update that begins at each student's image number ``start``, as ``DmStep``'s."""
        n, ratio = self.settings.batch_size, self.settings.two_time_scale_ratio
        student, fake_score = self.updaters
        for i in range(ratio):
            drawn = [draws.batches(start * ratio + i * n, n)[0] for draws in self.draws]
            with torch.set_grad_enabled(i == 0):
                cond, x = self._generate(drawn)
            if i == 0:
                learn([self._student_loss(x, cond, drawn)], [student], [self.fake_score])
                for ema in self.emas.values():
                    ema.update(start + n, n)
            learn([self._fake_score_loss(x.detach(), cond, drawn)], [fake_score], [self.net])

    def check(self) -> None:
        """Refuse to go on with a stack in which a gradient was not finite: it held all of them up.

        Raises:
            DivergedError: there was one.
        """
        skipped = sum(int(updater.skipped) for updater in self.updaters)
        if skipped:
            raise DivergedError(
                f"{skipped} updates of the toy's students had a gradient that is not finite.",
                todo="Lower dm.student.learning_rate or dm.fake_score.learning_rate.",
            )

    @torch.no_grad()
    def evaluate(self, noise: Tensor) -> Tensor:
        """Averaged students' points for noise (C, E, 2), each condition by its owner: (widths, seeds, C, E, 2)."""
        runs = len(self.widths) * len(self.seeds)
        mine = noise[self.parts].reshape(self.students, -1, 2).repeat(runs, 1, 1)
        cond = self.parts.repeat_interleave(noise.shape[1], dim=1).repeat(runs, 1)
        with self.emas["student"].applied():
            return self.net.generate(mine, cond).reshape(len(self.widths), len(self.seeds), *noise.shape)

    def _each(self, of_seed: list[Tensor]) -> Tensor:
        """One tensor per seed → one per student, stacked."""
        return _repeated(torch.stack(of_seed), len(self.widths), self.students)

    def _generate(self, drawn: list[BatchDraws]) -> tuple[Tensor, Tensor]:
        """Conditions of the parts (N, B) and points (N, B, 2)."""
        noise = self._each([d.normal("noise", (2,)) for d in drawn])
        chosen = torch.stack([d.integers("condition", 0, self.parts.shape[1]) for d in drawn])
        cond = self.parts[:, chosen].transpose(0, 1).flatten(0, 1).repeat(len(self.widths), 1)
        return cond, self.net.generate(noise, cond)

    def _noise(self, x: Tensor, role: str, drawn: list[BatchDraws], low: int, high: int) -> tuple[Tensor, Tensor]:
        sigma = self._each([self.grid[d.integers(f"{role}/level", low, high)] for d in drawn])
        noise = self._each([d.normal(f"{role}/noise", (2,)) for d in drawn])
        return x + sigma.unsqueeze(-1) * noise, sigma

    def _student_loss(self, x: Tensor, cond: Tensor, drawn: list[BatchDraws]) -> Tensor:
        """The sum over students of DM and regression: each mean over a stack, times its students."""
        low, high = self.settings.grid_range
        with torch.no_grad():
            noised, sigma = self._noise(x, "dm", drawn, low, high + 1)
            teacher = self.teacher.denoise(noised, sigma, cond)
            fake = self.fake_score.denoise(noised, sigma, cond, teacher)
        loss, _ = dm_loss(_images(x), _images(teacher), _images(fake))
        return len(x) * (loss + self._regression(drawn))

    def _regression(self, drawn: list[BatchDraws]) -> Tensor:
        """Of pairs of all conditions, whatever a student owns."""
        settings, pairs = self.settings.regression, self.pairs
        assert settings is not None
        chosen = [d.sized(settings.batch_size).integers("pairs", 0, len(pairs.cond)) for d in drawn]
        noise, cond, y = (_repeated(t, len(self.widths), self.students) for t in pairs.rows(chosen))
        x = self.net.generate(noise, cond)
        return settings.weight * regression_loss(_images(x), _images(y), settings.metric)

    def _fake_score_loss(self, x: Tensor, cond: Tensor, drawn: list[BatchDraws]) -> Tensor:
        noised, sigma = self._noise(x, "fake", drawn, 0, GRID_STEPS)
        prediction = self.fake_score.denoise(noised, sigma, cond, self.teacher.denoise(noised, sigma, cond))
        return len(x) * fake_score_loss(_images(prediction), _images(x), sigma.flatten(), SIGMA_DATA)


def flops_per_image(toy: config.Toy, width: int) -> float:
    """Of the networks, for one image of a student's updates: 2 per weight forwards, 4 more backwards.

    Each fake-score update generates a batch of its own, but for the first, which takes the student's.
    """
    conditions, regression, ratio = toy.distribution.conditions, toy.dm.regression, toy.dm.two_time_scale_ratio
    assert regression is not None
    student = parameters(2 + conditions, 2, toy.layers, width)
    fake = parameters(3 + conditions, 2, toy.layers, toy.fake_score_width)
    pairs = regression.batch_size / toy.dm.batch_size
    return 6 * student * (1 + pairs) + 2 * student * (ratio - 1) + 2 * fake + 6 * fake * ratio
