"""Teacher score matching: a network of another size first learns the teacher's denoiser (MSD, arXiv 2410.23274)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from msd import config
from msd.data.archive import LabelledImages
from msd.diffusion.noise import draw_sigma, high_levels
from msd.distill.losses import tsm_loss
from msd.distill.pictures import PICTURE_ROWS, sampled_side_by_side
from msd.draws import Draws
from msd.networks import Backbone
from msd.training.ema import averages_of
from msd.training.step import Picture, Step, Updater, add_up, learn


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
        self, student: Backbone, teacher: Backbone, data: LabelledImages, settings: config.Tsm, draws: Draws
    ) -> None:
        self.student, self.teacher, self.data = student.eval().requires_grad_(True), teacher, data
        self.settings, self.draws, self.batch_size = settings, draws, settings.batch_size
        self.updaters = {"student": Updater(student, settings.optimizer)}
        self.emas = averages_of(student, settings, "student")
        self.high_levels = high_levels(settings.noise, teacher.noise_grid)

    def networks(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def __call__(self, start: int) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        learn(self._losses(start, values), list(self.updaters.values()), [self.teacher])
        for ema in self.emas.values():
            ema.update(start + self.batch_size, self.batch_size)
        return values

    def _losses(self, start: int, values: dict[str, Tensor]) -> Iterator[Tensor]:
        for draws in self.draws.batches(start, self.batch_size):
            x, cond = self.fetch(self.data, draws.integers("data", 0, len(self.data.labels)), draws)
            sigma = draw_sigma(self.settings.noise, draws, self.high_levels)
            noised = x + sigma.reshape(-1, 1, 1, 1) * draws.normal("noise", self.data.image_shape)
            with torch.no_grad():
                target = self.teacher.denoise(noised, sigma, cond)
            loss = tsm_loss(self.student.denoise(noised, sigma, cond), target, sigma, self.teacher.sigma_data)
            add_up(values, {"loss": loss}, draws.share)
            yield draws.share * loss

    def picture(self) -> Picture:
        cond = torch.arange(PICTURE_ROWS) % self.teacher.num_classes
        with self.emas["student"].applied():
            nets = {"teacher": self.teacher, "student": self.student}
            return sampled_side_by_side(nets, {}, self.draws, cond)
