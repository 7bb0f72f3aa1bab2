"""A smaller network's first weights, cut out of a larger one's."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def slice_into(small: nn.Module, large: nn.Module) -> int:
    """Give every parameter of ``small`` the leading entries of the parameter of that name in ``large``.

    Parameters that ``large`` lacks, or has no larger in every dimension, stay as they are. Weights are not rescaled.

    Returns:
        How many numbers were set.
    """
    sources, count = dict(large.named_parameters()), 0
    for name, p in small.named_parameters():
        source = sources.get(name)
        if source is None or source.dim() != p.dim() or any(a < b for a, b in zip(source.shape, p.shape, strict=True)):
            continue
        p.copy_(source[tuple(slice(n) for n in p.shape)])
        count += p.numel()
    return count
