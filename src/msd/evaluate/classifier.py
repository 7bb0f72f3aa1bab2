"""Small convolutional classifiers: one gives the features that distances are measured in, another judges classes.

They are two networks so that the judge has no share in the distance. Both are trained on the training half only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msd import config
from msd.data.archive import LabelledImages, to_float
from msd.draws import BatchDraws, Draws, stream_seed
from msd.errors import DamagedFileError
from msd.networks.files import fill, read_safetensors, write_safetensors
from msd.training.step import Step, Terms, Updater
from msd.weights import CLASSIFIER_FORMAT

CHUNK = 200  # images at once: more do not fit a CPU's caches and take longer


class Classifier(nn.Module):
    """Two convolutions with pooling, a feature layer, a linear layer.

    Args:
        image_shape: (C, H, W).
        num_classes: of the logits.
        width: channels of the first convolution; the second has twice as many.
        features: width of the feature layer.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, width: int, features: int) -> None:
        super().__init__()
        channels, height, image_width = image_shape
        self.description: dict[str, Any] = {
            "image_shape": list(image_shape),
            "num_classes": num_classes,
            "width": width,
            "features": features,
        }
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.feature_layer = nn.Linear(2 * width * (height // 4) * (image_width // 4), features)
        self.logit_layer = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [-1, 1] → features (B, F) and logits (B, num_classes)."""
        features = F.relu(self.feature_layer(self.convolutions(x).flatten(1)))
        return features, self.logit_layer(features)

    def of_uint8(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same for uint8 images, wherever they are."""
        return self(to_float(images.to(self.logit_layer.weight.device)))


class ClassifierStep(Step):
    """One update by cross entropy on randomly shifted images.

    Args:
        net: what to train.
        data: the training half.
        settings: optimiser and augmentation.
        draws: random streams.
    """

    def __init__(
        self, net: Classifier, data: LabelledImages, settings: config.ClassifierTraining, draws: Draws
    ) -> None:
        self.net, self.data, self.settings, self.draws = net.train(), data, settings, draws
        self.batch_size, self.emas = settings.batch_size, {}
        self.updaters = {"": Updater(net, settings.optimizer)}

    def networks(self) -> dict[str, nn.Module]:
        return {"weights": self.net}

    def __call__(self, start: int) -> dict[str, Tensor]:
        return self.update_by(start, self._terms)

    def _terms(self, draws: BatchDraws) -> Terms:
        reach = self.settings.max_shift
        x, labels = self.fetch(self.data, draws.integers("data", 0, len(self.data.labels)), draws)
        shifts = [draws.integers(f"shift-{axis}", 0, 2 * reach + 1) for axis in "yx"]
        _, logits = self.net(_shift(x, torch.stack(shifts, dim=1), reach))
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"cross_entropy": loss}, {"loss": loss, "accuracy": accuracy}


def _shift(x: Tensor, shifts: Tensor, reach: int) -> Tensor:
    """Move each image by shifts − reach pixels, filling with background (−1)."""
    _, _, h, w = x.shape
    padded = F.pad(x, (reach,) * 4, value=-1.0)
    moved = [image[:, dy : dy + h, dx : dx + w] for image, (dy, dx) in zip(padded, shifts.tolist(), strict=True)]
    return torch.stack(moved)


def new_classifier(data: LabelledImages, settings: config.ClassifierTraining) -> Classifier:
    """A freshly initialised classifier, a function of the settings' seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.seed, "initial-weights", 0))
        return Classifier(data.image_shape, data.num_classes, settings.width, settings.features)


def save_classifier(net: Classifier, path: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a classifier atomically; for ``state`` see ``save_network``."""
    write_safetensors(path, net.state_dict() if state is None else state, CLASSIFIER_FORMAT, net.description)


def load_classifier(path: Path | str) -> Classifier:
    """Read a classifier; eval mode, gradients off.

    Raises:
        MissingFileError, DamagedFileError.
    """
    tensors, description = read_safetensors(Path(path), CLASSIFIER_FORMAT)
    try:
        net = Classifier(
            tuple(description["image_shape"]), description["num_classes"], description["width"], description["features"]
        )
    except (KeyError, TypeError, ValueError) as e:
        raise DamagedFileError("A weights file describes no classifier.", where=str(path), why=str(e)) from None
    fill(net, tensors, path)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net: Classifier, data: LabelledImages) -> float:
    """Share of images that a classifier labels rightly."""
    x, labels = data.batch(torch.arange(len(data.labels)))
    return float((net(x)[1].argmax(1) == labels).float().mean())
