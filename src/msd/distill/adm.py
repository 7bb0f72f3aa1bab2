"""Adversarial distribution matching: DM goes on with a discriminator on the fake score's bottleneck (DMD2; MSD).

Not to be confused with the ADM UNet. The real images are those of the student's own part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msd import config
from msd.data.archive import LabelledImages
from msd.distill.dm import DmStep
from msd.distill.losses import discriminator_loss, generator_adversarial_loss
from msd.networks.discriminator import Discriminator
from msd.training.step import Updater


class AdmStep(DmStep):
    """One student update of adversarial distribution matching.

    Args:
        data: the training half; only images of the part are used.
        discriminator: head on the fake score's bottleneck, trained; its gradient also reaches the encoder.
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
        terms, values = super()._student_terms(x, cond, index)
        loss = generator_adversarial_loss(self._logits(x, cond, "generator", index))
        terms["adversarial"] = self.settings.generator_weight * loss
        return terms, values | {"generator_adversarial_loss": loss}

    def _critic_terms(self, x: Tensor, cond: Tensor, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        terms, values = super()._critic_terms(x, cond, index)
        chosen = self.draws.integers("real", index, len(x), 0, len(self.real))
        real, real_cond = (t.to(x.device) for t in self.data.batch(self.real[chosen]))
        logits_real = self._logits(real, real_cond, "real", index)
        logits_fake = self._logits(x, cond, "critic", index)
        loss = discriminator_loss(logits_real, logits_fake)
        terms["discriminator"] = self.settings.discriminator_weight * loss
        return terms, values | {
            "discriminator_loss": loss,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }

    def _logits(self, x: Tensor, cond: Tensor, role: str, index: int) -> Tensor:
        """The discriminator's view of diffused images; levels are drawn apart for real and fake."""
        noised, sigma = self._noise(x, role, index, 0, len(self.fake_score.noise_grid))
        return self.discriminator(self.fake_score.features(noised, sigma, cond))

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "discriminator": self.discriminator,
            "discriminator_updater": self.discriminator_updater,
        }
