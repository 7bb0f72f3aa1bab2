"""The toy's stacked students learn what ``DmStep`` teaches each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_toy import step_of
from torch import Tensor
from torch.nn import functional as F

from msd import config
from msd.diffusion.grids import karras_sigmas
from msd.distill.dm import DmStep, Pairs
from msd.draws import Draws
from msd.networks import Backbone
from msd.networks.precond import SIGMA_DATA
from msd.toy import measure
from msd.toy.distribution import Mixture
from msd.toy.networks import FakeScores, Stack, Students, parameters
from msd.toy.train import flops_per_image, make_start


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
