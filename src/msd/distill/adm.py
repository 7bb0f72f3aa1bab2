"""Adversarial distribution matching: DM goes on with a discriminator on a bottleneck (DMD2; MSD).

Not to be confused with the ADM UNet. The real images are those of the student's own part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msd import config
from msd.data.archive import LabelledImages
from msd.distill.dm import DmStep
from msd.distill.losses import discriminator_loss, divergence_weights, generator_adversarial_loss, r1_penalty
from msd.networks.discriminator import Discriminator
from msd.training.step import Updater


class AdmStep(DmStep):
    """One student update of adversarial distribution matching.

    Args:
        data: the training half; only images of the part are used.
        discriminator: head on a bottleneck, trained. On the fake score's, its gradient also reaches the encoder; on
            the frozen teacher's, the student's score and features come from one pass.
        others: as for ``DmStep``.
    """

    settings: config.Adm

    def __init__(self, *others: Any, data: LabelledImages, discriminator: Discriminator, **named: Any) -> None:
        super().__init__(*others, **named)
        self.data, self.discriminator = data, discriminator.requires_grad_(True)
        self.real = data.indices_of(self.part.tolist())
        self.discriminator_updater = Updater(discriminator, self.settings.discriminator)

    def _critics(self) -> list[nn.Module]:
        return [*super()._critics(), self.discriminator]

    def _critic_updaters(self) -> list[Updater]:
        return [*super()._critic_updaters(), self.discriminator_updater]

    def _student_terms(self, x: Tensor, cond: Tensor, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.settings.discriminator_features == "teacher":
            noised, sigma = self._noised_for_scores(x, index)
            x0_teacher, features = self.teacher.denoise_with_features(noised, sigma, cond)  # one pass for both
            x0_teacher, noised = x0_teacher.detach(), noised.detach()
            logits = self.discriminator(features)
        else:
            noised, sigma, x0_teacher = self._teacher_view(x, cond, index)
            logits = self._logits(x, cond, "generator", index)
        weights = divergence_weights(logits, self.settings.divergence)
        terms, values = self._dm_terms(x, cond, index, noised, sigma, x0_teacher, weights)
        loss = generator_adversarial_loss(logits)
        terms["adversarial"] = self.settings.generator_weight * loss
        return terms, values | {"generator_adversarial_loss": loss}

    def _critic_terms(self, x: Tensor, cond: Tensor, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        terms, values = super()._critic_terms(x, cond, index)
        chosen = self.draws.integers("real", index, len(x), 0, len(self.real))
        real, real_cond = (t.to(x.device) for t in self.data.batch(self.real[chosen]))
        noised, sigma = self._noise_for_head(real, "real", index)
        logits_real = self._see(noised, sigma, real_cond)
        logits_fake = self._logits(x, cond, "critic", index)
        loss = discriminator_loss(logits_real, logits_fake)
        terms["discriminator"] = self.settings.discriminator_weight * loss
        values |= {
            "discriminator_loss": loss,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        if self.settings.r1_weight:
            nearby = noised + self.settings.r1_sigma * self.draws.normal("r1", index, tuple(real.shape))
            values["r1_penalty"] = penalty = r1_penalty(logits_real, self._see(nearby, sigma, real_cond))
            terms["r1"] = self.settings.r1_weight * penalty
        return terms, values

    def _logits(self, x: Tensor, cond: Tensor, role: str, index: int) -> Tensor:
        """The discriminator's view of diffused images; levels are drawn apart for real and fake."""
        return self._see(*self._noise_for_head(x, role, index), cond)

    def _noise_for_head(self, x: Tensor, role: str, index: int) -> tuple[Tensor, Tensor]:
        return self._noise(x, role, index, 0, len(self.fake_score.noise_grid))

    def _see(self, noised: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        seer = self.teacher if self.settings.discriminator_features == "teacher" else self.fake_score
        return self.discriminator(seer.features(noised, sigma, cond))

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "discriminator": self.discriminator,
            "discriminator_updater": self.discriminator_updater,
        }
