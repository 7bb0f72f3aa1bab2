"""Distribution matching: ``two_time_scale_ratio`` iterations, the first with a student update (DMD, DMD2).

Every iteration updates the fake score on the batch it generates; under strict alternation the first one does not.

The conditions are drawn from the student's own part. The pairs of the regression loss, where it is used, are not
filtered by part (MSD, arXiv 2410.23274), so every student keeps the full label input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msd import config
from msd.data.archive import Conditions
from msd.diffusion.noise import add_noise
from msd.distill.losses import Metric, dm_loss, fake_score_loss, regression_loss
from msd.distill.pictures import PICTURE_ROWS, sampled_side_by_side
from msd.draws import BatchDraws, Draws
from msd.networks import Backbone
from msd.training.ema import averages_of
from msd.training.step import Picture, Step, Terms, Updater, Watch, learn, losses_of


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


@dataclass(frozen=True)
class Generated:
    """A micro-batch that the student generates.

    Attributes:
        draws: its rows of the batch's draws.
        cond: (B, …).
        x: (B, C, H, W), without gradient.
    """

    draws: BatchDraws
    cond: Tensor
    x: Tensor


def _masked_share(x: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> Tensor:
    """Share of the entries that ``dm_loss`` masks; one that is not finite in its scale costs the whole image."""
    scaled = (x - x0_teacher).flatten(1).isfinite().all(dim=1).reshape(-1, 1, 1, 1)
    return 1 - (x0_fake.isfinite() & scaled).float().mean()


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


class DmStep(Step):
    """One student update of distribution matching.

    Args:
        student: the one-step generator, trained.
        teacher: frozen.
        fake_score: the denoiser of the student's own samples, trained.
        part: (P, …) the conditions the student owns.
        settings: losses and optimisers.
        draws: random streams.
        average: where the student's weight averages start; None: at the student.
        pairs: regression pairs, needed if ``settings.regression`` is set.
        metric: of the regression where it is a network's (LPIPS); None: the one that the settings name.
    """

    watches: tuple[Watch, ...] = (
        Watch("sample_spread", "fallen_to", 0.25, "the student's images have become alike, it may have collapsed"),
    )

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        fake_score: Backbone,
        part: Conditions,
        settings: config.Dm,
        draws: Draws,
        average: Backbone | None = None,
        pairs: Pairs | None = None,
        metric: Metric | None = None,
    ) -> None:
        self.student, self.fake_score = student.eval().requires_grad_(True), fake_score.eval().requires_grad_(True)
        self.teacher, self.part, self.settings, self.draws, self.pairs = teacher, part, settings, draws, pairs
        self.batch_size, self.metric = settings.batch_size, metric
        self.updaters = {
            "student": Updater(student, settings.student),
            "fake_score": Updater(fake_score, settings.fake_score),
        }
        self.emas = averages_of(student, settings, "student", average)

    def networks(self) -> dict[str, nn.Module]:
        return {"student": self.student, "fake_score": self.fake_score}

    def counts(self, nimg: int) -> dict[str, int]:
        """Images that the fake score has learnt from."""
        ratio = self.settings.two_time_scale_ratio
        return {"fake_score_nimg": nimg * (ratio - self.settings.strict_alternation)}

    def __call__(self, start: int) -> dict[str, Tensor]:
        n, ratio = self.batch_size, self.settings.two_time_scale_ratio
        values: dict[str, Tensor] = {}
        for i in range(ratio):
            index = start * ratio + i * n
            batches = self.draws.batches(index, n)
            if i == 0:
                seen, generated = self._update_student(batches)
                values |= seen
                self.average(start)
            else:
                with torch.no_grad():
                    generated = [Generated(draws, *self._generate(draws)) for draws in batches]
            if i > 0 or not self.settings.strict_alternation:
                values |= self._update_critics(generated)
        return values

    def _update_student(self, batches: Sequence[BatchDraws]) -> tuple[dict[str, Tensor], list[Generated]]:
        values: dict[str, Tensor] = {}
        generated: list[Generated] = []

        def terms(draws: BatchDraws) -> Terms:
            cond, x = self._generate(draws)
            generated.append(Generated(draws, cond, x.detach()))
            return self._student_terms(x, cond, draws)

        self._let_learn(losses_of(((draws, terms(draws)) for draws in batches), values), ["student"])
        images = torch.cat([batch.x for batch in generated]).float()
        values["sample_spread"] = sum(draws.share for draws in batches) * images.std(dim=0, correction=0).mean()
        return values, generated

    def _update_critics(self, generated: Sequence[Generated]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        parts = ((batch.draws, self._critic_terms(batch.x, batch.cond, batch.draws)) for batch in generated)
        self._let_learn(losses_of(parts, values), [name for name in self.updaters if name != "student"])
        return values

    def _let_learn(self, losses: Iterator[Tensor], movers: Sequence[str]) -> None:
        """Update the named networks and no others; gradients may pass through frozen ones."""
        still = [net for name, net in self.networks().items() if name not in movers]
        with frozen(*still):
            learn(losses, [self.updaters[name] for name in movers], [self.teacher, *still])

    def _generate(self, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """Conditions of the part (B, …) and the student's images (B, C, H, W)."""
        noise = draws.normal("noise", self.student.image_shape)
        cond = draws.to_device(self.part[draws.integers("condition", 0, len(self.part))])
        return cond, self.student.generate(noise, cond)

    def _student_terms(self, x: Tensor, cond: Tensor, draws: BatchDraws) -> Terms:
        """The student's loss on its images ``x``, with gradient."""
        return self._dm_terms(x, cond, draws, *self._teacher_view(x, cond, draws))

    @torch.no_grad()
    def _teacher_view(self, x: Tensor, cond: Tensor, draws: BatchDraws) -> tuple[Tensor, Tensor, Tensor]:
        """The input of the two scores, its levels (B,), and the teacher's prediction."""
        noised, sigma = self._noised_for_scores(x, draws)
        return noised, sigma, self.teacher.denoise(noised, sigma, cond)

    def _noised_for_scores(self, x: Tensor, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """The input of the two scores and its levels (B,)."""
        low, high = self.settings.grid_range
        return self._noise(x, "dm", draws, low, high + 1)

    @torch.no_grad()
    def _guided(self, x0_teacher: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
        """The teacher's prediction under the recipe's guidance."""
        return self.teacher.guided(x0_teacher, noised, sigma, self.settings.teacher_guidance)

    def _dm_terms(
        self,
        x: Tensor,
        cond: Tensor,
        draws: BatchDraws,
        noised: Tensor,
        sigma: Tensor,
        x0_teacher: Tensor,
        weights: Tensor | None = None,
    ) -> Terms:
        """Distribution matching, and the regression where there is one."""
        with torch.no_grad():
            x0_fake = self.fake_score.denoise(noised, sigma, cond)
        guided = self._guided(x0_teacher, noised, sigma)
        loss, g = dm_loss(x, guided, x0_fake, weights)
        terms = {"dm": loss}
        values = {
            "dm_loss": loss,
            "dm_gradient_mean_abs": g.abs().mean(),
            "dm_nonfinite_share": _masked_share(x.detach(), x0_fake, guided),
        }
        if self.settings.regression is not None:
            values["regression_loss"], terms["regression"] = self._regression(draws)
        return terms, values

    def _critic_terms(self, x: Tensor, cond: Tensor, draws: BatchDraws) -> Terms:
        """The critics' loss on the student's images ``x``, without gradient."""
        noised, sigma = self._noise(x, "fake", draws, 0, len(self.fake_score.noise_grid))
        prediction = self.fake_score.denoise(noised, sigma, cond)
        loss = fake_score_loss(prediction, x, sigma, self.fake_score.sigma_data)
        return {"fake_score": loss}, {"fake_score_loss": loss}

    def _regression(self, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """The regression loss on this micro-batch's pairs, plain and weighted.

        Pairs have a batch of their own; the ratio of the shares makes the parts of both add up to means.
        """
        settings, pairs = self.settings.regression, self.pairs
        assert settings is not None
        assert pairs is not None
        mine = draws.sized(settings.batch_size)
        if not mine.size:
            nothing = torch.zeros((), device=self.draws.device)
            return nothing, nothing
        chosen = mine.integers("pairs", 0, len(pairs.cond))
        noise, cond, y = (mine.to_device(t[chosen]) for t in (pairs.noise, pairs.cond, pairs.images))
        loss = regression_loss(self.student.generate(noise, cond), y, self.metric or settings.metric)
        loss = mine.share / draws.share * loss
        return loss, settings.weight * loss

    def _noise(self, x: Tensor, role: str, draws: BatchDraws, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Noise images to levels of the grid with low ≤ j < high; returns x_σ and σ (B,)."""
        sigma = self.teacher.noise_grid[draws.to_device(draws.integers(f"{role}/level", low, high))]
        return add_noise(x, sigma, draws, f"{role}/noise"), sigma

    def picture(self) -> Picture:
        cond = self.part[torch.arange(PICTURE_ROWS) % len(self.part)]
        samplers = {"teacher": self.teacher, "fake score": self.fake_score}
        with self.emas["student"].applied():
            return sampled_side_by_side(samplers, {"student": self.student}, self.draws, cond)
