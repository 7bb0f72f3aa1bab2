"""What ADM and Song UNets are made of: resampling convolutions, residual blocks with attention, embeddings.

Parameter names are those of EDM's blocks (arXiv 2206.00364), so its weights load by name; its constant
``resample_filter`` buffers are not kept in our files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MIN_CHANNELS_PER_GROUP = 4
MAX_PERIOD = 10000.0
BOX = (1.0, 1.0)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """32 groups, or as many as divide the channels and leave four or more in each."""
    most = min(32, channels // MIN_CHANNELS_PER_GROUP)
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels, eps=eps)


def zero(layer: nn.Module) -> nn.Module:
    """Set all parameters to zero, for the last layer of a residual branch."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def positional_embedding(label: Tensor, channels: int, *, endpoint: bool = False) -> Tensor:
    """Transformer position embedding of the noise label, cosines first.

    Args:
        label: (B,).
        channels: even width of the result.
        endpoint: the lowest frequency is exactly 1/10000.

    Returns:
        (B, channels) float32.
    """
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=label.device) / (half - endpoint)
    phase = label.float().outer(MAX_PERIOD**-steps)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def fourier_embedding(label: Tensor, frequencies: Tensor) -> Tensor:
    """Random Fourier features of the noise label (B,) at ``frequencies`` (C/2,), cosines first: (B, C) float32."""
    phase = label.float().outer(2 * math.pi * frequencies.float())
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class Resample(nn.Module):
    """Twice or half the size through a separable filter; no parameters.

    Args:
        up, down: at most one of them; with neither, the identity.
        taps: of the filter, normalised here. (1, 1) repeats pixels upwards and averages them downwards.
    """

    kernel: Tensor

    def __init__(self, *, up: bool = False, down: bool = False, taps: Sequence[float] = BOX) -> None:
        super().__init__()
        self.up, self.down, self.box = up, down, tuple(taps) == BOX
        scale = sum(taps) ** -2  # in Python: on the meta device torch would import its compiler for it, a second
        kernel = torch.tensor([[[[scale * a * b for b in taps] for a in taps]]], dtype=torch.float32)
        self.register_buffer("kernel", kernel, persistent=False)
        self.padding = (len(taps) - 1) // 2

    def forward(self, x: Tensor, padding: int = 0) -> Tensor:
        """x (B, C, H, W) → (B, C, H', W'); ``padding`` is what an earlier convolution has already added."""
        if self.box and not padding:
            if self.up:
                return F.interpolate(x, scale_factor=2, mode="nearest")
            return F.avg_pool2d(x, 2) if self.down else x
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * kernel, groups=channels, stride=2, padding=self.padding)
        if self.down:
            return F.conv2d(x, kernel, groups=channels, stride=2, padding=self.padding - padding)
        return x


class ResampleConv(nn.Conv2d):
    """A same-padded convolution after optional resampling.

    Args:
        cin, cout: channels.
        kernel: odd size.
        up, down, taps: see ``Resample``.
        filter_last: convolve first, on an input padded for both, then filter (EDM's fused down-sampling).
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        taps: Sequence[float] = BOX,
        filter_last: bool = False,
    ) -> None:
        super().__init__(cin, cout, kernel, padding=kernel // 2)
        self.resample, self.filter_last = Resample(up=up, down=down, taps=taps), filter_last

    def forward(self, x: Tensor) -> Tensor:
        if self.filter_last:
            extra = self.resample.padding
            wide = F.conv2d(x, self.weight, None, padding=self.kernel_size[0] // 2 + extra)
            return self.resample(wide, padding=extra) + self._bias()
        return super().forward(self.resample(x))

    def _bias(self) -> Tensor:
        assert self.bias is not None
        return self.bias[:, None, None]


class UNetBlock(nn.Module):
    """Residual block conditioned on an embedding, with optional resampling and self-attention.

    Args:
        cin, cout: channels.
        embedding: width of the embedding.
        up, down, taps: resampling.
        heads: of the attention; 0 for none.
        dropout: in training.
        scale_shift: the embedding scales and shifts (ADM); else it is added before the normalisation (DDPM++).
        skip_scale: factor on every residual sum.
        skip_conv: a convolution on the skip also where only the size changes.
        eps: of the normalisations.

    Attributes:
        recompute: keep nothing for the backward pass but the inputs, and compute the rest again there.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        embedding: int,
        *,
        up: bool = False,
        down: bool = False,
        taps: Sequence[float] = BOX,
        heads: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = True,
        skip_scale: float = 1.0,
        skip_conv: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.heads, self.dropout = cin, cout, heads, dropout
        self.scale_shift, self.skip_scale, self.recompute = scale_shift, skip_scale, False
        self.norm0 = group_norm(cin, eps)
        self.conv0 = ResampleConv(cin, cout, 3, up=up, down=down, taps=taps)
        self.affine = nn.Linear(embedding, cout * (2 if scale_shift else 1))
        self.norm1 = group_norm(cout, eps)
        self.conv1 = zero(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip: nn.Module
        if cin != cout or (skip_conv and (up or down)):
            self.skip = ResampleConv(cin, cout, 1, up=up, down=down, taps=taps)
        else:
            self.skip = Resample(up=up, down=down, taps=taps)
        if heads:
            self.norm2 = group_norm(cout, eps)
            self.qkv = nn.Conv2d(cout, 3 * cout, 1)
            self.proj = zero(nn.Conv2d(cout, cout, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, cin, H, W), embedding (B, E) → (B, cout, H', W')."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._compute, x, embedding, use_reentrant=False)
        return self._compute(x, embedding)

    def _compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        shortcut = self.skip(x)
        x = self.conv0(F.silu(self.norm0(x)))
        e = self.affine(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x + e))
        x = self._scaled(self.conv1(F.dropout(x, self.dropout, self.training)) + shortcut)
        if self.heads:
            x = self._scaled(self.proj(self._attend(self.norm2(x))) + x)
        return x

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.skip_scale == 1 else x * self.skip_scale

    def _attend(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # EDM's channel order is (head, channel of the head, q/k/v)
        qkv = self.qkv(x).reshape(b, self.heads, c // self.heads, 3, h * w)
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind()  # else torch keeps the whole (h·w)² matrix
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)


def drop_labels(labels: Tensor, share: float, training: bool) -> Tensor:
    """Set a share of label rows (B, C) to zero in training, for classifier-free guidance."""
    if not (training and share):
        return labels
    return labels * (torch.rand(len(labels), 1, device=labels.device) >= share)
