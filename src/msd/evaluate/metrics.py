"""Metrics through torch-fidelity with a registered feature extractor.

The Fréchet distance is in a small classifier's features and its name is the experiment's, ``fd_digits`` say: it is not
FID, which needs Inception-v3, and its numbers compare only within one extractor (its sha256 stands beside each).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from msd.evaluate.classifier import load_classifier

EXTRACTOR = "msd-classifier"


class ClassifierFeatures(FeatureExtractorBase):
    """A ``Classifier`` file as a torch-fidelity extractor."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError("needs feature_extractor_weights_path")
        self.net = load_classifier(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 28, 28, dtype=torch.uint8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        channels = self.net.description["image_shape"][0]  # torch-fidelity feeds three channels; grey ones are equal
        return (self.net.of_uint8(x[:, :channels])[0],)


torch_fidelity.register_feature_extractor(EXTRACTOR, ClassifierFeatures)


class _Images(torch.utils.data.Dataset[Tensor]):
    """uint8 images with three channels, as torch-fidelity wants them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        image = torch.from_numpy(self.images[i].copy())  # memory-mapped images are read-only
        return image if len(image) == 3 else image.repeat(3, 1, 1)


def distances(
    images: NDArray[np.uint8], reference: NDArray[np.uint8], features: Path, neighbours: int, metric: str
) -> dict[str, float]:
    """Fréchet distance, precision and recall of images against a reference.

    Args:
        images, reference: (N, C, H, W) uint8.
        features: the extractor's weights.
        neighbours: k of precision and recall (Kynkäänniemi et al., arXiv 1904.06991).
        metric: what to call the Fréchet distance in these features.
    """
    result = torch_fidelity.calculate_metrics(
        input1=_Images(images),
        input2=_Images(reference),
        feature_extractor=EXTRACTOR,
        feature_extractor_weights_path=str(features),
        fid=True,
        prc=True,
        prc_neighborhood=neighbours,
        batch_size=250,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    return {
        metric: float(result["frechet_inception_distance"]),
        "precision": float(result["precision"]),
        "recall": float(result["recall"]),
    }
