"""One denoiser, three views: x0, ε and score of ``x = x0 + σ ε`` (arXiv 2206.00364, eq. 3)."""

from __future__ import annotations

from torch import Tensor


def epsilon_of(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a denoised image x0 implies: ε = (x − x0)/σ. σ broadcasts against x."""
    return (x - x0) / sigma


def x0_of_epsilon(x: Tensor, epsilon: Tensor, sigma: Tensor) -> Tensor:
    """The denoised image that a noise prediction implies: x0 = x − σ ε."""
    return x - sigma * epsilon


def score_of(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """∇ₓ log p(x; σ) = (x0 − x)/σ²."""
    return (x0 - x) / sigma**2


def x0_of_score(x: Tensor, score: Tensor, sigma: Tensor) -> Tensor:
    """The denoised image that a score implies: x0 = x + σ² ∇ₓ log p(x; σ)."""
    return x + sigma**2 * score
