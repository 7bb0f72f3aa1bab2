"""The teacher's own training: EDM's denoising loss on the training half (arXiv 2206.00364, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msd import config
from msd.data.archive import TrainingImages
from msd.diffusion.noise import add_noise, draw_sigma, high_levels
from msd.distill.losses import denoising_loss
from msd.distill.pictures import PICTURE_ROWS, sampled_side_by_side
from msd.draws import BatchDraws, Draws, stream_seed
from msd.networks import Backbone
from msd.training.ema import averages_of
from msd.training.step import Picture, Step, Terms, Updater


class TeacherStep(Step):
    """One update of a denoiser on real images.

    Args:
        net: what to train.
        data: the training half.
        settings: loss, optimiser and EMA.
        draws: random streams.
        prompt_dropout: share of prompts that are replaced by the empty one, for guidance later.
    """

    def __init__(
        self,
        net: Backbone,
        data: TrainingImages,
        settings: config.TeacherTraining,
        draws: Draws,
        prompt_dropout: float = 0.0,
    ) -> None:
        self.prompt_dropout = prompt_dropout
        self.net, self.data, self.settings, self.draws = net.train().requires_grad_(True), data, settings, draws
        self.batch_size = settings.batch_size
        self.updaters = {"": Updater(net, settings.optimizer)}
        self.emas = averages_of(net, settings, "weights")
        self.high_levels = high_levels(settings.noise, net.noise_grid)

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def __call__(self, start: int) -> dict[str, Tensor]:
        return self.update_by(start, self._terms)

    def _terms(self, draws: BatchDraws) -> Terms:
        x, cond = self.fetch(self.data, draws.integers("data", 0, len(self.data)), draws)
        if self.settings.flip:
            mirrored = draws.uniform("flip") < 0.5
            x = torch.where(mirrored.reshape(-1, 1, 1, 1), x.flip(3), x)
        if self.prompt_dropout:
            assert isinstance(self.net.empty, Tensor)
            dropped = draws.uniform("prompt-dropout") < self.prompt_dropout
            cond = torch.where(dropped.reshape(-1, 1, 1), self.net.empty, cond)
        sigma = self.net.round_sigma(draw_sigma(self.settings.noise, draws, self.high_levels))
        noised = add_noise(x, sigma, draws)
        # dropout, where a network has it, draws from torch's global stream: tie that to the image index too
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.draws.seed, "dropout", draws.first))
            loss = denoising_loss(self.net.denoise(noised, sigma, cond), x, sigma, self.net.sigma_data)
        return {"denoising": loss}, {"loss": loss}

    def picture(self) -> Picture:
        cond = self.data.some_conditions(PICTURE_ROWS)
        with self.emas["weights"].applied():
            return sampled_side_by_side({"teacher": self.net}, {}, self.draws, cond)
