"""LPIPS on VGG16 features, the metric of DMD's regression loss (arXiv 1801.03924; 2311.18828, section 3.3)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.sample_similarity_lpips import URL_VGG16_LPIPS, SampleSimilarityLPIPS
from torchvision.models import VGG16_Weights

from msd.download import fetch

RESIZE = 224  # DMD compares at this size


class Lpips(nn.Module):
    """torch-fidelity's LPIPS, differentiable, its weights downloaded at first use (528 MB, or from ``MSD_MIRROR``).

    Raises:
        DownloadError: they cannot be had; the metrics ``huber`` and ``l2`` need none.
    """

    def __init__(self) -> None:
        super().__init__()
        files = [fetch(url) for url in (URL_VGG16_LPIPS, VGG16_Weights.IMAGENET1K_V1.url)]
        # the library looks for its files in torch's hub folder before it downloads them itself
        before = torch.hub.get_dir()
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Path(folder) / "checkpoints"
            checkpoints.mkdir()
            for file in files:
                (checkpoints / file.name).symlink_to(file.absolute())
            try:
                torch.hub.set_dir(folder)
                self.net = SampleSimilarityLPIPS("lpips", sample_similarity_resize=RESIZE).eval().requires_grad_(False)
            finally:
                torch.hub.set_dir(before)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], grey or RGB, twice → distances (B,); the gradient reaches both."""
        x, y = ((t.float() + 1) * 127.5 for t in (x, y))
        if x.shape[1] == 1:
            x, y = x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)
        return self.net(x, y).reshape(len(x))
