"""The losses of TSM, DM and ADM: pure functions, float32 inside, shapes checked at entry.

Sources: DMD (arXiv 2311.18828), DMD2 (arXiv 2405.14867), EDM (arXiv 2206.00364), MSD (arXiv 2410.23274).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Literal["reverse_kl", "jensen_shannon", "forward_kl"]
Metric = Callable[[Tensor, Tensor], Tensor]  # images (B, C, H, W) in [-1, 1], twice → distances (B,)
MAX_LOGIT = 10.0  # of the forward KL's weights: exp of more says nothing but that real and fake are told apart


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) != 1:
        raise ValueError(f"shapes differ: {sorted(shapes)}")


def _per_image(value: Tensor, like: Tensor) -> Tensor:
    if value.shape != (len(like),):
        raise ValueError(f"expected shape ({len(like)},), got {tuple(value.shape)}")
    return value.float().reshape(-1, *[1] * (like.ndim - 1))


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """λ(σ) = (σ² + σ_d²) / (σ σ_d)² (EDM, table 1); its limit 1/σ² for σ_d = ∞, which makes the loss that of ε."""
    if math.isinf(sigma_data):
        return sigma.square().reciprocal()
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def denoising_loss(denoised: Tensor, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's training loss: mean of λ(σ) (D(x + σε; σ) − x)².

    Args:
        denoised, x: (B, C, H, W).
        sigma: (B,).

    Returns:
        0-d float32.
    """
    _same_shape(denoised, x)
    return (edm_weight(_per_image(sigma, x), sigma_data) * (denoised.float() - x.float()).square()).mean()


def tsm_loss(x0_student: Tensor, x0_teacher: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Teacher score matching: mean of λ(σ) ‖D_student − D_teacher‖², the same noised input for both (MSD, TSM).

    Args:
        x0_student, x0_teacher: (B, C, H, W); no gradient flows into the teacher.
        sigma: (B,).

    Returns:
        0-d float32.
    """
    return denoising_loss(x0_student, x0_teacher.detach(), sigma, sigma_data)


def divergence_weights(logits: Tensor, divergence: Divergence) -> Tensor:
    """f-distill's weights of the distribution-matching gradient: h(r) = f''(r) r² at r = exp(logit).

    h is 1 for the reverse KL divergence, r/(1+r) for Jensen–Shannon, r for the forward KL (arXiv 2502.15681, table 1).

    Args:
        logits: (B,) of the discriminator on the student's images, an estimate of ln(p_real/p_student).

    Returns:
        (B,) float32 without gradient.
    """
    _per_image(logits, logits)
    logits = logits.detach().float()
    if divergence == "reverse_kl":
        return torch.ones_like(logits)
    return logits.sigmoid() if divergence == "jensen_shannon" else logits.clamp(max=MAX_LOGIT).exp()


def dm_loss(x: Tensor, x0_teacher: Tensor, x0_fake: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distribution matching: ½ mean (x − sg(x − g))², whose gradient with respect to x is g / numel.

    ``g = (D_fake(x_σ) − D_teacher(x_σ)) / mean|x − D_teacher(x_σ)|``, the mean per image (DMD, eq. 7–8 in DMD2's
    scaling). Non-finite entries of g become 0.

    Args:
        x: (B, C, H, W) the student's images, with gradient.
        x0_teacher, x0_fake: (B, C, H, W) the two denoisers' predictions from the same noised x.
        weights: (B,) factors of g, see ``divergence_weights``; None: all one.

    Returns:
        The loss (0-d float32) and g (B, C, H, W).
    """
    _same_shape(x, x0_teacher, x0_fake)
    x = x.float()
    with torch.no_grad():
        teacher, fake = x0_teacher.float(), x0_fake.float()
        scale = (x - teacher).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
        g = (fake - teacher) / scale
        if weights is not None:
            g = _per_image(weights, x) * g
        g = torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)
    return 0.5 * F.mse_loss(x, (x - g).detach()), g


def fake_score_loss(x0_pred: Tensor, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """The fake score's denoising loss: mean of (σ⁻² + σ_d⁻²)(D_fake(x + σε) − sg x)².

    The weight is EDM's λ(σ) written out.

    Args:
        x0_pred, x: (B, C, H, W); no gradient flows into x.
        sigma: (B,).

    Returns:
        0-d float32.
    """
    return denoising_loss(x0_pred, x.detach(), sigma, sigma_data)


def generator_adversarial_loss(logits: Tensor) -> Tensor:
    """Non-saturating: mean softplus(−h(fake)). logits (B,) → 0-d float32."""
    _per_image(logits, logits)
    return F.softplus(-logits.float()).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """mean softplus(h(fake)) + mean softplus(−h(real)). logits (B,) → 0-d float32."""
    _per_image(logits_real, logits_real)
    _per_image(logits_fake, logits_fake)
    return F.softplus(logits_fake.float()).mean() + F.softplus(-logits_real.float()).mean()


def r1_penalty(logits_real: Tensor, logits_nearby: Tensor) -> Tensor:
    """R1 by finite differences: mean (h(x) − h(x + sε))², about s² mean‖∇h‖² (APT, arXiv 2501.08316).

    Args:
        logits_real, logits_nearby: (B,) of real images, and of the same ones moved a little at random.

    Returns:
        0-d float32.
    """
    _per_image(logits_real, logits_real)
    _same_shape(logits_real, logits_nearby)
    return (logits_real.float() - logits_nearby.float()).square().mean()


def regression_loss(x: Tensor, y: Tensor, metric: str | Metric) -> Tensor:
    """DMD's regression of the student's image on the teacher's for the same noise.

    Args:
        x: (B, C, H, W) the student's images.
        y: (B, C, H, W) the teacher's.
        metric: ``huber`` (mean, δ = 1, half squared error inside), ``l2`` (mean squared error), or a function that
            gives each pair's distance (B,): ``distill.perceptual.Lpips``, which DMD uses.

    Returns:
        0-d float32.
    """
    _same_shape(x, y)
    x, y = x.float(), y.float().detach()
    if callable(metric):
        distances = metric(x, y)
        _per_image(distances, x)
        return distances.float().mean()
    if metric == "huber":
        return F.huber_loss(x, y)
    if metric == "l2":
        return F.mse_loss(x, y)
    raise ValueError(f"no metric {metric!r}")
