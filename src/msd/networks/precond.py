"""Preconditionings around a raw network, as backbones (arXiv 2206.00364, table 1).

``D(x; σ, c) = c_skip x + c_out F(c_in x; c_noise, c)``. EDM, VP, VE and iDDPM differ in the four coefficients and in
the noise levels that the network knows; x-, ε- and score-views of D are in ``diffusion.views``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msd.diffusion.grids import iddpm_sigmas, karras_sigmas, vp_sigma, vp_time
from msd.errors import ConfigError
from msd.networks.backbone import Backbone
from msd.networks.layers import UNetBlock
from msd.networks.raw import RawNetwork

SIGMA_DATA = 0.5
GRID_STEPS = 1000


class Coefficients(NamedTuple):
    """Of the preconditioning at σ, each broadcastable to (B, 1, 1, 1)."""

    skip: Tensor | float
    out: Tensor
    input: Tensor | float
    noise: Tensor


class Preconditioned(Backbone):
    """A pixel-space denoiser around a raw network.

    Args:
        model: the raw network; called with (scaled image, c_noise, one-hot labels, augmentation labels).
        image_shape: (C, H, W) of the images outside.
        pixel_unshuffle: fold that many pixels per side into channels before the network and unfold them after it.
            A permutation, so noise stays white and losses keep their meaning; it makes small networks fast.
        sigma_min, sigma_max: the noise levels that the network is used at; a one-step student works at ``sigma_max``.
    """

    model: RawNetwork

    def __init__(
        self,
        model: RawNetwork,
        *,
        image_shape: tuple[int, int, int],
        pixel_unshuffle: int = 1,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__()
        self.model, self.image_shape, self.pixel_unshuffle = model, image_shape, pixel_unshuffle
        self.num_conditions = model.label_dim
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, SIGMA_DATA
        self.known_sigmas = (sigma_min, sigma_max)
        grid = karras_sigmas(GRID_STEPS, sigma_min, sigma_max).float().flip(0)
        self.register_buffer("noise_grid", grid, persistent=False)

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """At noise levels σ (B, 1, 1, 1) float32."""

    @property
    def has_unconditional(self) -> bool:
        return bool(self.num_conditions and self.model.label_dropout)

    @property
    def blocks(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, UNetBlock)]

    def set_recompute(self, on: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, UNetBlock):
                module.recompute = on

    @property
    def student_level(self) -> float:
        return self.sigma_max

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The denoised image, EDM's calling convention.

        Args:
            x: (B, C, H, W) noised image in units where the data lie in [-1, 1].
            sigma: (B,), (B, 1, 1, 1) or 0-d noise level.
            class_labels: (B, num_conditions) one-hot or (B,) class ids, or None: the unconditional prediction.
            augment_labels: (B, augment_dim), or None: not augmented.

        Returns:
            (B, C, H, W) float32.
        """
        denoised, _ = self._run(x, sigma, class_labels, augment_labels)
        assert denoised is not None
        return denoised

    def denoise(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        return self(x, level, self._one_hot(cond))

    def denoise_unconditional(self, x: Tensor, level: Tensor) -> Tensor:
        return self(x, level)

    def denoise_with_features(self, x: Tensor, level: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        denoised, features = self._run(x, level, self._one_hot(cond))
        assert denoised is not None
        return denoised, features

    def features(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        return self._run(x, level, self._one_hot(cond), decode=False)[1]

    @property
    def features_shape(self) -> tuple[int, int]:
        return self.model.bottleneck_channels, self.model.bottleneck_resolution

    def condition_embeddings(self) -> Tensor:
        """The teacher's own embedding of each class: the columns of its label map, (num_conditions, E) float32."""
        if self.model.map_label is None:
            raise ConfigError("An unconditional network has no class embeddings.", todo="Choose another partition.")
        return self.model.map_label.weight.detach().float().T

    def _one_hot(self, cond: Tensor) -> Tensor | None:
        return F.one_hot(cond, self.num_conditions).float() if self.num_conditions else None

    def _run(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None,
        augment: Tensor | None = None,
        *,
        decode: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        x = x.float()
        s = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1).expand(len(x))
        s = s.reshape(-1, 1, 1, 1)
        if labels is not None and not labels.is_floating_point():
            labels = self._one_hot(labels.reshape(-1)) if labels.ndim == 1 else labels.float()
        if labels is not None:
            labels = labels.reshape(-1, self.num_conditions)
        c = self.coefficients(s)
        inner = c.input * x
        if self.pixel_unshuffle > 1:
            inner = F.pixel_unshuffle(inner, self.pixel_unshuffle)
        with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
            raw, features = self.model(inner, c.noise.flatten(), labels, augment, decode=decode)
        if raw is None:
            return None, features
        if self.pixel_unshuffle > 1:
            raw = F.pixel_shuffle(raw, self.pixel_unshuffle)
        # a network that also predicts a variance gives more channels than the image has
        return c.skip * x + c.out * raw[:, : x.shape[1]].float(), features


class EDMPrecond(Preconditioned):
    """EDM's own, σ_data = 0.5. The network knows every σ; EDM trains and samples 0.002 … 80."""

    def __init__(self, model: RawNetwork, *, image_shape: tuple[int, int, int], pixel_unshuffle: int = 1) -> None:
        super().__init__(
            model, image_shape=image_shape, pixel_unshuffle=pixel_unshuffle, sigma_min=0.002, sigma_max=80.0
        )
        self.known_sigmas = (0.0, math.inf)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma.square() + self.sigma_data**2
        return Coefficients(
            self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4
        )


class VPPrecond(Preconditioned):
    """Variance-preserving SDE with β_d = 19.9, β_min = 0.1, ε_t = 1e-5, 1000 steps (arXiv 2011.13456)."""

    def __init__(self, model: RawNetwork, *, image_shape: tuple[int, int, int], pixel_unshuffle: int = 1) -> None:
        super().__init__(
            model,
            image_shape=image_shape,
            pixel_unshuffle=pixel_unshuffle,
            sigma_min=vp_sigma(1e-5),
            sigma_max=vp_sigma(1.0),
        )

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(1.0, -sigma, (sigma.square() + 1).rsqrt(), (GRID_STEPS - 1) * vp_time(sigma))


class VEPrecond(Preconditioned):
    """Variance-exploding SDE, σ 0.02 … 100 (arXiv 2011.13456)."""

    def __init__(self, model: RawNetwork, *, image_shape: tuple[int, int, int], pixel_unshuffle: int = 1) -> None:
        super().__init__(
            model, image_shape=image_shape, pixel_unshuffle=pixel_unshuffle, sigma_min=0.02, sigma_max=100.0
        )

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(1.0, sigma, 1.0, (sigma / 2).log())


class IDDPMPrecond(Preconditioned):
    """Improved DDPM's cosine schedule of 1000 levels (arXiv 2102.09672); the network knows these levels only."""

    levels: Tensor

    def __init__(self, model: RawNetwork, *, image_shape: tuple[int, int, int], pixel_unshuffle: int = 1) -> None:
        levels = iddpm_sigmas(GRID_STEPS)
        super().__init__(
            model,
            image_shape=image_shape,
            pixel_unshuffle=pixel_unshuffle,
            sigma_min=float(levels[GRID_STEPS - 1]),
            sigma_max=float(levels[0]),
        )
        self.register_buffer("levels", levels, persistent=False)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(
            1.0, -sigma, (sigma.square() + 1).rsqrt(), (GRID_STEPS - 1 - self._nearest(sigma)).to(torch.float32)
        )

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.levels.to(sigma.device)[self._nearest(sigma)].to(sigma.dtype)

    def _nearest(self, sigma: Tensor) -> Tensor:
        distance = (sigma.flatten().float()[:, None] - self.levels.to(sigma.device)[None]).abs()
        return distance.argmin(dim=1).reshape(sigma.shape)


PRECONDITIONINGS: dict[str, type[EDMPrecond | VPPrecond | VEPrecond | IDDPMPrecond]] = {
    "edm": EDMPrecond,
    "vp": VPPrecond,
    "ve": VEPrecond,
    "iddpm": IDDPMPrecond,
}
