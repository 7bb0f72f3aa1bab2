"""The ADM UNet of Dhariwal & Nichol (arXiv 2105.05233), in the form of EDM's ImageNet-64 teacher (arXiv 2206.00364).

Parameter names are those of EDM's ``DhariwalUNet``, so its weights load by name. The network maps an already scaled
image, a noise label and one-hot class labels to a raw output; preconditioning is in ``networks.precond``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msd.networks.layers import UNetBlock, group_norm, positional_embedding, zero
from msd.networks.raw import RawNetwork

EMBEDDING_MULTIPLE = 4  # width of the embedding, in units of model_channels
CHANNELS_PER_HEAD = 64


class ADMUNet(RawNetwork):
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
        augment_dim: width of augmentation labels, 0 for none.
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
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        self.label_dim, self.label_dropout, self.model_channels = label_dim, label_dropout, model_channels
        self.augment_dim = augment_dim
        width = model_channels * EMBEDDING_MULTIPLE
        self.map_layer0 = nn.Linear(model_channels, width)
        self.map_layer1 = nn.Linear(width, width)
        self.map_label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        if self.map_label is not None and not self.map_label.weight.is_meta:
            nn.init.normal_(self.map_label.weight)  # on the meta device torch would import its compiler: a second
        self.map_augment = zero(nn.Linear(augment_dim, model_channels, bias=False)) if augment_dim else None

        def block(cin: int, cout: int, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            most = cout // CHANNELS_PER_HEAD if attention else 0
            heads = next((h for h in range(most, 0, -1) if cout % h == 0), 0)
            return UNetBlock(cin, cout, width, heads=heads, up=up, down=down, dropout=dropout)

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
        self.out_conv = zero(nn.Conv2d(channels, out_channels, 3, padding=1))

    def embed(self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        e = positional_embedding(noise_label, self.model_channels).to(self.map_layer0.weight.dtype)
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels.to(e.dtype))
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.map_label is not None:
            e = e + self.map_label(self.labels_for(e, class_labels))
        return F.silu(e)

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        skips = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        x = skips[-1]
        for layer in self.dec.values():
            assert isinstance(layer, UNetBlock)
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))
