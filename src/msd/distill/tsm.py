"""Teacher score matching: a network of another size first learns the teacher's denoiser (MSD, arXiv 2410.23274)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msd import config
from msd.data.archive import LabelledImages
from msd.diffusion.noise import draw_sigma
from msd.distill.losses import tsm_loss
from msd.draws import Draws
from msd.networks import Backbone
from msd.training.ema import Ema
from msd.training.step import Updater, minimise


class TsmStep:
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
        self.updater = Updater(student, settings.optimizer)
        self.ema = Ema(student, settings.ema_halflife_images, settings.ema_rampup)

    def __call__(self, start: int) -> dict[str, Tensor]:
        n, draws = self.batch_size, self.draws
        x, cond = self.data.batch(draws.integers("data", start, n, 0, len(self.data.labels)))
        x, cond = x.to(draws.device), cond.to(draws.device)
        sigma = draw_sigma(self.settings.noise, draws, start, n, self.teacher.noise_grid)
        noised = x + sigma.reshape(-1, 1, 1, 1) * draws.normal("noise", start, tuple(x.shape))
        with torch.no_grad():
            target = self.teacher.denoise(noised, sigma, cond)
        loss = tsm_loss(self.student.denoise(noised, sigma, cond), target, sigma, self.teacher.sigma_data)
        (norm,) = minimise(loss, self.updater)
        self.ema.update(self.student, start + n, n)
        return {"loss": loss, "gradient_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "updater": self.updater.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.updater.load_state_dict(state["updater"])
        self.ema.load_state_dict(state["ema"])
