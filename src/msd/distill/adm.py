"""Adversarial distribution matching: DM goes on with a discriminator on a bottleneck (DMD2; MSD).

Not to be confused with the ADM UNet. The real images are those of the student's own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msd import config, ranks
from msd.data.archive import TrainingImages
from msd.distill.dm import DmStep, Generated
from msd.distill.losses import discriminator_loss, divergence_weights, generator_adversarial_loss, r1_penalty
from msd.draws import BatchDraws
from msd.networks.discriminator import Discriminator
from msd.training.step import Terms, Updater, Watch

MEAN_RATE = 0.05  # how fast the mean of the divergence's weights is followed, per student update
SATURATED = 0.1  # of the discriminator's loss; 1.39 is chance, at 0.1 it is right with p = 0.95 on both sides


class AdmStep(DmStep):
    """One student update of adversarial distribution matching.

    The weights of another divergence than the reverse KL are divided by their running mean. That is ours: it keeps the
    gradient's size, so that one learning rate serves all, and does not depend on how a batch is split.

    Args:
        data: the training half.
        real: (M,) int64 which of its images belong to the part; no others are used.
        discriminator: head on a bottleneck, trained. On the fake score's, its gradient also reaches the encoder; on
            the frozen teacher's, the student's score and features come from one pass.
        others: as for ``DmStep``.
    """

    settings: config.Adm
    watches = (
        *DmStep.watches,
        Watch("discriminator_loss", "below", SATURATED, "the discriminator saturates and teaches the student little"),
    )

    def __init__(
        self, *others: Any, data: TrainingImages, real: Tensor, discriminator: Discriminator, **named: Any
    ) -> None:
        super().__init__(*others, **named)
        self.data, self.real, self.discriminator = data, real, discriminator.requires_grad_(True)
        self.updaters["discriminator"] = Updater(discriminator, self.settings.discriminator)
        even = torch.zeros(1, device=self.draws.device)  # the logit of a discriminator that cannot tell
        self.mean_weight = divergence_weights(even, self.settings.divergence).squeeze()

    def networks(self) -> dict[str, nn.Module]:
        return super().networks() | {"discriminator": self.discriminator}

    def _update_student(self, batches: Sequence[BatchDraws]) -> tuple[dict[str, Tensor], list[Generated]]:
        values, generated = super()._update_student(batches)
        if self.settings.divergence != "reverse_kl":
            mean = ranks.total(values["divergence_weight"])
            self.mean_weight = torch.where(mean.isfinite(), self.mean_weight.lerp(mean, MEAN_RATE), self.mean_weight)
        return values, generated

    def _student_terms(self, x: Tensor, cond: Tensor, draws: BatchDraws) -> Terms:
        if self.settings.discriminator_features == "teacher":
            noised, sigma = self._noised_for_scores(x, draws)
            x0_teacher, features = self.teacher.denoise_with_features(noised, sigma, cond)  # one pass for both
            x0_teacher, noised = x0_teacher.detach(), noised.detach()
            logits = self.discriminator(features)
        else:
            noised, sigma, x0_teacher = self._teacher_view(x, cond, draws)
            logits = self._logits(x, cond, "generator", draws)
        weights = None
        if self.settings.divergence != "reverse_kl":
            weights = divergence_weights(logits, self.settings.divergence)
        scaled = None if weights is None else weights / self.mean_weight
        terms, values = self._dm_terms(x, cond, draws, noised, sigma, x0_teacher, scaled)
        values["generator_adversarial_loss"] = loss = generator_adversarial_loss(logits)
        terms["adversarial"] = self.settings.generator_weight * loss
        if weights is not None:
            values["divergence_weight"] = weights.mean()
        return terms, values

    def _critic_terms(self, x: Tensor, cond: Tensor, draws: BatchDraws) -> Terms:
        terms, values = super()._critic_terms(x, cond, draws)
        real, real_cond = self.fetch(self.data, self.real[draws.integers("real", 0, len(self.real))], draws)
        noised, sigma = self._noise_for_head(real, "real", draws)
        logits_real = self._see(noised, sigma, real_cond)
        logits_fake = self._logits(x, cond, "critic", draws)
        loss = discriminator_loss(logits_real, logits_fake)
        terms["discriminator"] = self.settings.discriminator_weight * loss
        values |= {
            "discriminator_loss": loss,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        if self.settings.r1_weight:
            nearby = noised + self.settings.r1_sigma * draws.normal("r1", tuple(real.shape[1:]))
            values["r1_penalty"] = penalty = r1_penalty(logits_real, self._see(nearby, sigma, real_cond))
            terms["r1"] = self.settings.r1_weight * penalty
        return terms, values

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"mean_weight": self.mean_weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean_weight = state["mean_weight"].to(self.draws.device)

    def _logits(self, x: Tensor, cond: Tensor, role: str, draws: BatchDraws) -> Tensor:
        """The discriminator's view of diffused images; levels are drawn apart for real and fake."""
        return self._see(*self._noise_for_head(x, role, draws), cond)

    def _noise_for_head(self, x: Tensor, role: str, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        return self._noise(x, role, draws, 0, len(self.fake_score.noise_grid))

    def _see(self, noised: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        seer = self.teacher if self.settings.discriminator_features == "teacher" else self.fake_score
        return self.discriminator(seer.features(noised, sigma, cond))
