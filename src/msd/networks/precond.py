"""EDM's preconditioning (arXiv 2206.00364, table 1, column "Ours") around a raw network, as a backbone.

``D(x; σ, c) = c_skip x + c_out F(c_in x; c_noise, c)`` with σ_data = 0.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msd.diffusion.grids import karras_sigmas
from msd.errors import ConfigError
from msd.networks.adm import ADMUNet
from msd.networks.backbone import Backbone

SIGMA_DATA = 0.5
GRID_STEPS = 1000


class EDMPrecond(Backbone):
    """A pixel-space denoiser.

    Args:
        model: the raw network; called with (scaled image, c_noise, one-hot labels).
        image_shape: (C, H, W) of the images outside.
        label_dim: number of classes, 0 for an unconditional network.
        pixel_unshuffle: fold that many pixels per side into channels before the network and unfold them after it.
            A permutation, so noise stays white and losses keep their meaning; it makes small networks fast.
        sigma_min, sigma_max: noise range; a one-step student works at ``sigma_max``.
    """

    def __init__(
        self,
        model: ADMUNet,
        *,
        image_shape: tuple[int, int, int],
        label_dim: int,
        pixel_unshuffle: int = 1,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.image_shape, self.num_conditions, self.pixel_unshuffle = image_shape, label_dim, pixel_unshuffle
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, SIGMA_DATA
        self.description: dict[str, Any] = {}  # how to build it again; ``networks.files`` fills it
        self.register_buffer(
            "noise_grid", karras_sigmas(GRID_STEPS, sigma_min, sigma_max).float().flip(0), persistent=False
        )

    @property
    def student_level(self) -> float:
        return self.sigma_max

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The denoised image, EDM's calling convention.

        Args:
            x: (B, C, H, W) noised image in units where the data lie in [-1, 1].
            sigma: (B,) or 0-d noise level.
            class_labels: (B, label_dim) one-hot, or None.

        Returns:
            (B, C, H, W) float32.
        """
        denoised, _ = self._run(x, sigma, class_labels)
        assert denoised is not None
        return denoised

    def denoise(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        return self(x, level, self._one_hot(cond))

    def denoise_with_features(self, x: Tensor, level: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        denoised, features = self._run(x, level, self._one_hot(cond), with_features=True)
        assert denoised is not None
        assert features is not None
        return denoised, features

    def features(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        _, features = self._run(x, level, self._one_hot(cond), features_only=True)
        assert features is not None
        return features

    @property
    def features_shape(self) -> tuple[int, int]:
        return self.model.bottleneck_channels, self.model.bottleneck_resolution

    def condition_embeddings(self) -> Tensor:
        """The teacher's own embedding of each class: the columns of its label map, (label_dim, E) float32."""
        if self.model.map_label is None:
            raise ConfigError("An unconditional network has no class embeddings.", todo="Choose another partition.")
        return self.model.map_label.weight.detach().float().T

    def _one_hot(self, cond: Tensor) -> Tensor | None:
        return F.one_hot(cond, self.num_conditions).float() if self.num_conditions else None

    def _run(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, with_features: bool = False, features_only: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        x = x.float()
        s = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x)).reshape(-1, 1, 1, 1)
        total = s.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = s * self.sigma_data / total.sqrt()
        c_in = total.rsqrt()
        c_noise = s.flatten().log() / 4
        inner = F.pixel_unshuffle(c_in * x, self.pixel_unshuffle) if self.pixel_unshuffle > 1 else c_in * x
        raw, features = self.model(inner, c_noise, labels, with_features=with_features, features_only=features_only)
        if raw is None:
            return None, features
        raw = F.pixel_shuffle(raw.float(), self.pixel_unshuffle) if self.pixel_unshuffle > 1 else raw.float()
        return c_skip * x + c_out * raw, features
