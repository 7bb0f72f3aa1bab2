"""Distribution matching: ``two_time_scale_ratio`` iterations, the first with a student update (DMD, DMD2).

Every iteration updates the fake score on the batch it generates; under strict alternation the first one does not.

The conditions are drawn from the student's own part. The pairs of the regression loss, where it is used, are not
filtered by part (MSD, arXiv 2410.23274), so every student keeps the full label input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msd import config
from msd.distill.losses import dm_loss, fake_score_loss, regression_loss
from msd.draws import Draws
from msd.networks import Backbone
from msd.training.ema import Ema
from msd.training.step import Updater, minimise


@dataclass(frozen=True)
class Pairs:
    """Regression pairs: noise and the teacher's sample for it.

    Attributes:
        noise, images: (N, C, H, W) float32.
        cond: (N,) int64.
    """

    noise: Tensor
    images: Tensor
    cond: Tensor


@contextlib.contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Let gradients flow through ``nets`` without reaching their parameters."""
    for net in nets:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in nets:
            net.requires_grad_(True)


class DmStep:
    """One student update of distribution matching.

    Args:
        student: the one-step generator, trained.
        teacher: frozen.
        fake_score: the denoiser of the student's own samples, trained.
        part: (P,) int64 the conditions the student owns.
        settings: losses and optimisers.
        draws: random streams.
        average: where the student's weight average starts; None: at the student.
        pairs: regression pairs, needed if ``settings.regression`` is set.
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        fake_score: Backbone,
        part: Tensor,
        settings: config.Dm,
        draws: Draws,
        average: Backbone | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        self.student, self.fake_score = student.eval().requires_grad_(True), fake_score.eval().requires_grad_(True)
        self.teacher, self.part, self.settings, self.draws, self.pairs = teacher, part, settings, draws, pairs
        self.batch_size = settings.batch_size
        self.student_updater = Updater(student, settings.student)
        self.fake_updater = Updater(fake_score, settings.fake_score)
        self.ema = Ema(average or student, settings.ema_halflife_images, settings.ema_rampup)

    def __call__(self, start: int) -> dict[str, Tensor]:
        n, draws, ratio = self.batch_size, self.draws, self.settings.two_time_scale_ratio
        values: dict[str, Tensor] = {}
        for i in range(ratio):
            index = start * ratio + i * n
            noise = draws.normal("noise", index, (n, *self.student.image_shape))
            cond = self.part[draws.integers("condition", index, n, 0, len(self.part))].to(draws.device)
            if i == 0:
                x = self.student.generate(noise, cond)
                values |= self._update_student(x, cond, index)
                self.ema.update(self.student, start + n, n)
                x = x.detach()
            else:
                with torch.no_grad():
                    x = self.student.generate(noise, cond)
            if i > 0 or not self.settings.strict_alternation:
                values |= self._update_critic(x, cond, index)
        return values

    def _update_student(self, x: Tensor, cond: Tensor, index: int) -> dict[str, Tensor]:
        with frozen(*self._critics()):
            terms, values = self._student_terms(x, cond, index)
            (norm,) = minimise(torch.stack(list(terms.values())).sum(), self.student_updater)
        return values | {"student_gradient_norm": norm}

    def _update_critic(self, x: Tensor, cond: Tensor, index: int) -> dict[str, Tensor]:
        terms, values = self._critic_terms(x, cond, index)
        norms = minimise(torch.stack(list(terms.values())).sum(), *self._critic_updaters())
        return values | {"fake_score_gradient_norm": norms[0]}

    def _critics(self) -> list[nn.Module]:
        """Networks that are frozen while the student learns."""
        return [self.fake_score]

    def _critic_updaters(self) -> list[Updater]:
        return [self.fake_updater]

    def _student_terms(self, x: Tensor, cond: Tensor, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms of the student's loss, and what to journal."""
        return self._dm_terms(x, cond, index, *self._teacher_view(x, cond, index))

    @torch.no_grad()
    def _teacher_view(self, x: Tensor, cond: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """The input of the two scores, its levels (B,), and the teacher's prediction."""
        noised, sigma = self._noised_for_scores(x, index)
        return noised, sigma, self.teacher.denoise(noised, sigma, cond)

    def _noised_for_scores(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The input of the two scores and its levels (B,)."""
        low, high = self.settings.grid_range
        return self._noise(x, "dm", index, low, high + 1)

    @torch.no_grad()
    def _guided(self, x0_teacher: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
        """The teacher's prediction under classifier-free guidance: x0(∅) + s (x0(c) − x0(∅))."""
        scale = self.settings.teacher_guidance
        if scale == 1:
            return x0_teacher
        unconditional = self.teacher.denoise_unconditional(noised, sigma)
        return unconditional + scale * (x0_teacher - unconditional)

    def _dm_terms(
        self,
        x: Tensor,
        cond: Tensor,
        index: int,
        noised: Tensor,
        sigma: Tensor,
        x0_teacher: Tensor,
        weights: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Distribution matching, and the regression where there is one."""
        with torch.no_grad():
            x0_fake = self.fake_score.denoise(noised, sigma, cond)
        loss, g = dm_loss(x, self._guided(x0_teacher, noised, sigma), x0_fake, weights)
        terms = {"dm": loss}
        values = {"dm_loss": loss, "dm_gradient_mean_abs": g.abs().mean()}
        if self.settings.regression is not None:
            values["regression_loss"] = regression = self._regression(index)
            terms["regression"] = self.settings.regression.weight * regression
        return terms, values

    def _critic_terms(self, x: Tensor, cond: Tensor, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms of the critic's loss on the student's images ``x``, and what to journal."""
        noised, sigma = self._noise(x, "fake", index, 0, len(self.fake_score.noise_grid))
        prediction = self.fake_score.denoise(noised, sigma, cond)
        loss = fake_score_loss(prediction, x, sigma, self.fake_score.sigma_data)
        return {"fake_score": loss}, {"fake_score_loss": loss}

    def _regression(self, index: int) -> Tensor:
        settings, pairs = self.settings.regression, self.pairs
        assert settings is not None
        assert pairs is not None
        chosen = self.draws.integers("pairs", index, settings.batch_size, 0, len(pairs.cond))
        noise, cond, y = (t[chosen].to(self.draws.device) for t in (pairs.noise, pairs.cond, pairs.images))
        return regression_loss(self.student.generate(noise, cond), y, settings.metric)

    def _noise(self, x: Tensor, role: str, index: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Noise images to levels of the grid with low ≤ j < high; returns x_σ and σ (B,)."""
        grid, n = self.teacher.noise_grid, len(x)
        sigma = grid[self.draws.integers(f"{role}/level", index, n, low, high).to(grid.device)]
        noise = self.draws.normal(f"{role}/noise", index, tuple(x.shape))
        return x + sigma.reshape(-1, 1, 1, 1) * noise, sigma

    def _state(self) -> dict[str, Any]:
        """Everything that changes while training, by name."""
        return {
            "student": self.student,
            "fake_score": self.fake_score,
            "student_updater": self.student_updater,
            "fake_updater": self.fake_updater,
            "ema": self.ema,
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: thing.state_dict() for name, thing in self._state().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, thing in self._state().items():
            thing.load_state_dict(state[name])
