"""The ADM UNet of Dhariwal & Nichol (arXiv 2105.05233), in the form of EDM's ImageNet-64 teacher (arXiv 2206.00364).

Parameter names are those of EDM's ``DhariwalUNet``, so its weights load by name. The network maps an already scaled
image, a noise label and one-hot class labels to a raw output; preconditioning is in ``networks.precond``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING_MULTIPLE = 4  # width of the embedding, in units of model_channels
CHANNELS_PER_HEAD = 64
MIN_CHANNELS_PER_GROUP = 4
MAX_PERIOD = 10000.0


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or fewer where that would leave under four channels in a group."""
    return nn.GroupNorm(min(32, channels // MIN_CHANNELS_PER_GROUP), channels, eps=1e-5)


def _zero(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def sinusoidal_embedding(noise_label: Tensor, channels: int) -> Tensor:
    """Transformer position embedding of the noise label, cosines first.

    Args:
        noise_label: (B,).
        channels: even width of the result.

    Returns:
        (B, channels) float32.
    """
    half = channels // 2
    frequencies = MAX_PERIOD ** (-torch.arange(half, dtype=torch.float32, device=noise_label.device) / half)
    phase = noise_label.float().outer(frequencies)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class ResampleConv(nn.Conv2d):
    """A same-padded convolution after an optional 2× box down-sampling or nearest up-sampling."""

    def __init__(self, cin: int, cout: int, kernel: int, up: bool = False, down: bool = False) -> None:
        super().__init__(cin, cout, kernel, padding=kernel // 2)
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(resample(x, self.up, self.down))


def resample(x: Tensor, up: bool, down: bool) -> Tensor:
    """Twice the size by repetition, half the size by 2×2 means, or unchanged."""
    if up:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    if down:
        return F.avg_pool2d(x, 2)
    return x


class UNetBlock(nn.Module):
    """Residual block with adaptive group normalisation and optional self-attention."""

    def __init__(
        self,
        cin: int,
        cout: int,
        embedding: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up, self.down, self.dropout = up, down, dropout
        self.in_channels = cin
        self.heads = cout // CHANNELS_PER_HEAD if attention else 0
        self.norm0 = group_norm(cin)
        self.conv0 = ResampleConv(cin, cout, 3, up=up, down=down)
        self.affine = nn.Linear(embedding, 2 * cout)
        self.norm1 = group_norm(cout)
        self.conv1 = _zero(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = ResampleConv(cin, cout, 1, up=up, down=down) if cin != cout else None
        if self.heads:
            self.norm2 = group_norm(cout)
            self.qkv = nn.Conv2d(cout, 3 * cout, 1)
            self.proj = _zero(nn.Conv2d(cout, cout, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, cin, H, W), embedding (B, E) → (B, cout, H', W')."""
        shortcut = self.skip(x) if self.skip is not None else resample(x, self.up, self.down)
        x = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        x = self.conv1(F.dropout(x, self.dropout, self.training)) + shortcut
        if self.heads:
            x = self.proj(self._attend(self.norm2(x))) + x
        return x

    def _attend(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # EDM's channel order is (head, channel of the head, q/k/v)
        q, k, v = self.qkv(x).reshape(b, self.heads, c // self.heads, 3, h * w).transpose(2, 4).unbind(3)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)


class ADMUNet(nn.Module):
    """The ADM UNet.

    Args:
        resolution: height and width of the square input.
        in_channels, out_channels: image channels.
        label_dim: number of classes, 0 for an unconditional network.
        model_channels: base width.
        channel_mult: width of each resolution level in units of ``model_channels``.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with self-attention.
        dropout: inside the residual blocks, training only.
        label_dropout: share of labels set to zero in training (classifier-free guidance).
    """

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_dim, self.label_dropout, self.model_channels = label_dim, label_dropout, model_channels
        width = model_channels * EMBEDDING_MULTIPLE
        self.map_layer0 = nn.Linear(model_channels, width)
        self.map_layer1 = nn.Linear(width, width)
        self.map_label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

        def block(cin: int, cout: int, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            return UNetBlock(cin, cout, width, attention=attention, up=up, down=down, dropout=dropout)

        self.enc = nn.ModuleDict()
        widths = [model_channels * m for m in channel_mult]
        channels = in_channels
        skips: list[int] = []
        for level, cout in enumerate(widths):
            r = resolution >> level
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = nn.Conv2d(channels, cout, 3, padding=1)
                channels = cout
            else:
                self.enc[f"{r}x{r}_down"] = block(channels, channels, down=True)
            skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(channels, cout, attention=r in attn_resolutions)
                channels = cout
                skips.append(channels)
        self.bottleneck_channels = channels
        self.bottleneck_resolution = resolution >> (len(widths) - 1)

        self.dec = nn.ModuleDict()
        for level, cout in reversed(list(enumerate(widths))):
            r = resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{r}x{r}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{r}x{r}_in1"] = block(channels, channels)
            else:
                self.dec[f"{r}x{r}_up"] = block(channels, channels, up=True)
            for i in range(num_blocks + 1):
                self.dec[f"{r}x{r}_block{i}"] = block(channels + skips.pop(), cout, attention=r in attn_resolutions)
                channels = cout
        self.out_norm = group_norm(channels)
        self.out_conv = _zero(nn.Conv2d(channels, out_channels, 3, padding=1))

    def embed(self, noise_label: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise label (B,) and one-hot class labels (B, label_dim) or None → embedding (B, E)."""
        e = sinusoidal_embedding(noise_label, self.model_channels).to(self.map_layer0.weight.dtype)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.map_label is not None:
            if class_labels is None:
                class_labels = e.new_zeros(len(e), self.label_dim)
            if self.training and self.label_dropout:
                kept = torch.rand(len(e), 1, device=e.device) >= self.label_dropout
                class_labels = class_labels * kept
            e = e + self.map_label(class_labels.to(e.dtype))
        return F.silu(e)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_labels: Tensor | None,
        with_features: bool = False,
        features_only: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Raw output (B, out_channels, H, W) and the bottleneck: the encoder's last output, (B, C, h, w).

        ``features_only`` skips the decoder and returns ``(None, bottleneck)``.
        """
        e = self.embed(noise_label, class_labels)
        skips = []
        for layer in self.enc.values():
            x = layer(x, e) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        bottleneck = x if with_features or features_only else None
        if features_only:
            return None, bottleneck
        for layer in self.dec.values():
            assert isinstance(layer, UNetBlock)
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, e)
        return self.out_conv(F.silu(self.out_norm(x))), bottleneck
