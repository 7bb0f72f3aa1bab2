"""The teacher's own training: EDM's denoising loss on the training half (arXiv 2206.00364, section 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msd import config
from msd.data.archive import LabelledImages
from msd.diffusion.noise import draw_sigma
from msd.distill.losses import denoising_loss
from msd.draws import Draws, stream_seed
from msd.networks import Backbone
from msd.training.ema import Ema
from msd.training.step import Updater, minimise


class TeacherStep:
    """One update of a denoiser on real images.

    Args:
        net: what to train.
        data: the training half.
        settings: loss, optimiser and EMA.
        draws: random streams.
    """

    def __init__(self, net: Backbone, data: LabelledImages, settings: config.TeacherTraining, draws: Draws) -> None:
        self.net, self.data, self.settings, self.draws = net.train().requires_grad_(True), data, settings, draws
        self.batch_size = settings.batch_size
        self.updater = Updater(net, settings.optimizer)
        self.ema = Ema(net, settings.ema_halflife_images, settings.ema_rampup)

    def __call__(self, start: int) -> dict[str, Tensor]:
        n, draws = self.batch_size, self.draws
        x, cond = self.data.batch(draws.integers("data", start, n, 0, len(self.data.labels)))
        x, cond = x.to(draws.device), cond.to(draws.device)
        if self.settings.flip:
            mirrored = draws.uniform("flip", start, n) < 0.5
            x = torch.where(mirrored.reshape(-1, 1, 1, 1), x.flip(3), x)
        sigma = draw_sigma(self.settings.noise, draws, start, n, self.net.noise_grid)
        noised = x + sigma.reshape(-1, 1, 1, 1) * draws.normal("noise", start, tuple(x.shape))
        # dropout, where a network has it, draws from torch's global stream: tie that to the image index too
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(draws.seed, "dropout", start))
            loss = denoising_loss(self.net.denoise(noised, sigma, cond), x, sigma, self.net.sigma_data)
        (norm,) = minimise(loss, self.updater)
        self.ema.update(self.net, start + n, n)
        return {"loss": loss, "gradient_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "updater": self.updater.state_dict(), "ema": self.ema.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.updater.load_state_dict(state["updater"])
        self.ema.load_state_dict(state["ema"])
