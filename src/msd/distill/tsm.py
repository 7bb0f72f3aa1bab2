"""Teacher score matching: a network of another size first learns the teacher's denoiser (MSD, arXiv 2410.23274)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msd import config
from msd.data.archive import TrainingImages
from msd.diffusion.noise import add_noise, draw_sigma, high_levels
from msd.distill.losses import tsm_loss
from msd.distill.pictures import PICTURE_ROWS, sampled_side_by_side
from msd.draws import BatchDraws, Draws
from msd.networks import Backbone
from msd.training.ema import averages_of
from msd.training.step import Picture, Step, Terms, Updater


class TsmStep(Step):
    """``E[ λ(σ) ‖D_student(x_σ; σ, c) − D_teacher(x_σ; σ, c)‖² ]`` over noised real images of all classes.

    Args:
        student: the smaller network, trained.
        teacher: frozen.
        data: the training half.
        settings: loss, optimiser and EMA.
        draws: random streams.
    """

    def __init__(
        self, student: Backbone, teacher: Backbone, data: TrainingImages, settings: config.Tsm, draws: Draws
    ) -> None:
        self.student, self.teacher, self.data = student.eval().requires_grad_(True), teacher, data
        self.settings, self.draws, self.batch_size = settings, draws, settings.batch_size
        self.updaters = {"student": Updater(student, settings.optimizer)}
        self.emas = averages_of(student, settings, "student")
        self.high_levels = high_levels(settings.noise, teacher.noise_grid)

    def networks(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def __call__(self, start: int) -> dict[str, Tensor]:
        return self.update_by(start, self._terms, still=[self.teacher])

    def _terms(self, draws: BatchDraws) -> Terms:
        x, cond = self.fetch(self.data, draws.integers("data", 0, len(self.data)), draws)
        sigma = self.teacher.round_sigma(draw_sigma(self.settings.noise, draws, self.high_levels))
        noised = add_noise(x, sigma, draws)
        with torch.no_grad():
            target = self.teacher.denoise(noised, sigma, cond)
        loss = tsm_loss(self.student.denoise(noised, sigma, cond), target, sigma, self.teacher.sigma_data)
        return {"tsm": loss}, {"loss": loss}

    def picture(self) -> Picture:
        cond = self.data.some_conditions(PICTURE_ROWS)
        with self.emas["student"].applied():
            nets = {"teacher": self.teacher, "student": self.student}
            return sampled_side_by_side(nets, {}, self.draws, cond)
