"""The discriminator head on a score network's bottleneck (DMD2, arXiv 2405.14867)."""

from __future__ import annotations

from torch import Tensor, nn


def _groups(channels: int) -> int:
    """32 as in DMD2 where that leaves three channels or more in a group; else groups of eight.

    The second normalisation acts on a single pixel, so a group of one channel would always come out as zero.
    """
    return 32 if channels % 32 == 0 and channels >= 96 else max(1, channels // 8)


class Discriminator(nn.Module):
    """conv 4×4 stride 2 → group norm → SiLU → conv over what is left → group norm → SiLU → 1×1 conv → logit.

    On 8×8 features this is DMD2's head for ImageNet-64 (its second convolution is 4×4).

    Args:
        channels: of the features.
        resolution: of the square features, at least 2.
    """

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        rest = (resolution + 2 - 4) // 2 + 1
        groups = _groups(channels)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, rest, stride=rest),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, h, w) → logits (B,)."""
        return self.layers(features.float()).flatten()
