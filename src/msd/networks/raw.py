"""What every raw UNet is to its preconditioning: labels in, raw output and bottleneck out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from msd.networks.layers import drop_labels


class RawNetwork(nn.Module, ABC):
    """A UNet from (scaled image, noise label, labels) to a raw output.

    Attributes:
        label_dim: number of classes, 0 for an unconditional network.
        label_dropout: share of class labels set to zero in training.
        augment_dim: width of the augmentation labels (arXiv 2206.00364, appendix F.2), 0 for none.
        map_label: the linear map of the class labels, if any.
        bottleneck_channels, bottleneck_resolution: of the encoder's last output.
    """

    label_dim: int
    label_dropout: float
    augment_dim: int
    map_label: nn.Linear | None
    bottleneck_channels: int
    bottleneck_resolution: int

    @abstractmethod
    def embed(self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Noise label (B,), one-hot classes (B, label_dim) or None, augmentation (B, augment_dim) or None → (B, E).

        Without class labels a conditional network is given zeros: the unconditional embedding.
        """

    def labels_for(self, embedding: Tensor, class_labels: Tensor | None) -> Tensor:
        """Class labels (B, label_dim) in the embedding's type; zeros for None; some dropped in training."""
        if class_labels is None:
            return embedding.new_zeros(len(embedding), self.label_dim)
        return drop_labels(class_labels.to(embedding.dtype), self.label_dropout, self.training)

    @abstractmethod
    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """x (B, C, H, W) → what the decoder concatenates, the bottleneck (B, c, h, w) last."""

    @abstractmethod
    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """The encoder's outputs (the list is used up) → raw output (B, C, H, W)."""

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        decode: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """Raw output, or None without ``decode``, and the bottleneck (B, c, h, w)."""
        embedding = self.embed(noise_label, class_labels, augment_labels)
        skips = self.encode(x, embedding)
        bottleneck = skips[-1]
        return (self.decode(skips, embedding) if decode else None), bottleneck
