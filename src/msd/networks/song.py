"""The UNet of Song et al. (arXiv 2011.13456) in its DDPM++ and NCSN++ forms, as in EDM (arXiv 2206.00364).

Parameter names are those of EDM's ``SongUNet``, so its weights load by name. DDPM++: positional embedding, standard
encoder and decoder, taps (1, 1). NCSN++: Fourier embedding, residual encoder, taps (1, 3, 3, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msd.networks.layers import (
    BOX,
    Resample,
    ResampleConv,
    UNetBlock,
    fourier_embedding,
    group_norm,
    positional_embedding,
    zero,
)
from msd.networks.raw import RawNetwork

EMBEDDING_MULTIPLE = 4  # width of the embedding, in units of model_channels
FOURIER_SCALE = 16.0
EPS = 1e-6


class _Fourier(nn.Module):
    """The frequencies of the Fourier embedding: drawn once, kept in the weights, never trained."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * FOURIER_SCALE)


class SongUNet(RawNetwork):
    """DDPM++ or NCSN++.

    Args:
        resolution: height and width of the square input.
        in_channels, out_channels: image channels.
        label_dim, augment_dim: widths of class and augmentation labels, 0 for none.
        model_channels: base width.
        channel_mult: width of each resolution level in units of ``model_channels``.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with self-attention.
        dropout, label_dropout: in training.
        embedding: ``positional`` or ``fourier``.
        noise_channel_mult: width of the noise embedding in units of ``model_channels``.
        encoder: ``standard``; ``skip``: the shrunken input joins at every level; ``residual``: so, as a running sum.
        decoder: ``standard``, or ``skip``: every level adds to the output.
        taps: of the resampling filter.
    """

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        augment_dim: int = 0,
        embedding: str = "positional",
        noise_channel_mult: int = 1,
        encoder: str = "standard",
        decoder: str = "standard",
        taps: Sequence[float] = BOX,
    ) -> None:
        super().__init__()
        self.label_dim, self.augment_dim, self.label_dropout = label_dim, augment_dim, label_dropout
        self.noise_channels = model_channels * noise_channel_mult
        width = model_channels * EMBEDDING_MULTIPLE
        self.map_noise = _Fourier(self.noise_channels) if embedding == "fourier" else None
        self.map_label = nn.Linear(label_dim, self.noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, self.noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(self.noise_channels, width)
        self.map_layer1 = nn.Linear(width, width)

        def block(cin: int, cout: int, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            return UNetBlock(
                cin,
                cout,
                width,
                up=up,
                down=down,
                taps=taps,
                heads=1 if attention else 0,
                dropout=dropout,
                scale_shift=False,
                skip_scale=math.sqrt(0.5),
                skip_conv=True,
                eps=EPS,
            )

        self.enc = nn.ModuleDict()
        widths = [model_channels * m for m in channel_mult]
        channels, side = model_channels, in_channels  # side: channels of the shrunken input beside the main path
        skips: list[int] = []
        for level, cout in enumerate(widths):
            r = resolution >> level
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = nn.Conv2d(in_channels, channels, 3, padding=1)
            else:
                self.enc[f"{r}x{r}_down"] = block(channels, channels, down=True)
                if encoder == "skip":
                    self.enc[f"{r}x{r}_aux_down"] = Resample(down=True, taps=taps)
                    self.enc[f"{r}x{r}_aux_skip"] = nn.Conv2d(side, channels, 1)
                if encoder == "residual":
                    self.enc[f"{r}x{r}_aux_residual"] = ResampleConv(
                        side, channels, 3, down=True, taps=taps, filter_last=True
                    )
                    side = channels
            skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(channels, cout, attention=r in attn_resolutions)
                channels = cout
                skips.append(channels)
        self.bottleneck_channels = channels
        self.bottleneck_resolution = resolution >> (len(widths) - 1)

        self.dec = nn.ModuleDict()
        lowest = len(widths) - 1
        for level, cout in reversed(list(enumerate(widths))):
            r = resolution >> level
            if level == lowest:
                self.dec[f"{r}x{r}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{r}x{r}_in1"] = block(channels, channels)
            else:
                self.dec[f"{r}x{r}_up"] = block(channels, channels, up=True)
            for i in range(num_blocks + 1):
                attention = i == num_blocks and r in attn_resolutions
                self.dec[f"{r}x{r}_block{i}"] = block(channels + skips.pop(), cout, attention=attention)
                channels = cout
            if decoder == "skip" and level < lowest:
                self.dec[f"{r}x{r}_aux_up"] = Resample(up=True, taps=taps)
            if decoder == "skip" or level == 0:
                self.dec[f"{r}x{r}_aux_norm"] = group_norm(channels, EPS)
                self.dec[f"{r}x{r}_aux_conv"] = zero(nn.Conv2d(channels, out_channels, 3, padding=1))

    def embed(self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        if self.map_noise is None:
            e = positional_embedding(noise_label, self.noise_channels, endpoint=True)
        else:
            e = fourier_embedding(noise_label, self.map_noise.freqs)
        e = torch.cat(e.chunk(2, dim=1)[::-1], dim=1).to(self.map_layer0.weight.dtype)  # sines first
        if self.map_label is not None:
            e = e + self.map_label(self.labels_for(e, class_labels) * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels.to(e.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        side = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                side = layer(side)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(side)
            elif name.endswith("aux_residual"):
                x = skips[-1] = side = (x + layer(side)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        x = skips[-1]
        out: Tensor | None = None
        normed = x
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                normed = layer(x)
            elif name.endswith("aux_conv"):
                more = layer(F.silu(normed))
                out = more if out is None else out + more
            else:
                assert isinstance(layer, UNetBlock)
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
        assert out is not None
        return out
