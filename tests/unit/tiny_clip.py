"""A real CLIP model of open_clip with random weights, small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

NAME = "tiny-clip"
CONTEXT = 12  # tokens of a caption, with those of its start and end
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_clip(folder: Path) -> Path:
    """Make the model known to open_clip; the file of its weights."""
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(2)
    net = open_clip.create_model(NAME)
    for weight in net.parameters():
        if weight.ndim > 1:  # so large that embeddings differ, and some cosines are negative
            weight.data.normal_(std=3 / weight[0].numel() ** 0.5)
    path = folder / "weights.pt"
    torch.save(net.state_dict(), path)
    return path
