"""Many small networks as one: students, and their fake scores, in stacked weights. Knows no losses.

Every tensor begins with the number of the network; a network of a stack computes what it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msd.draws import Draws
from msd.networks.precond import SIGMA_DATA


class Stack(nn.Module):
    """N multilayer perceptrons with SiLU, alike in inputs, number of layers and outputs, of any widths.

    All have the largest width; what a narrower one lacks is weights of zero, which stay zero: such a unit's output is
    SiLU(0) = 0, so neither what enters it nor what leaves it has a gradient.

    Args:
        inputs, outputs, layers: of each; ``layers`` are hidden.
        widths: of each network's hidden layers.
        seeds: of each network's first weights; equal seeds and widths give equal weights.
        role: tells the streams of students and fake scores apart.
        zero_last: begin with an output of zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        layers: int,
        widths: Sequence[int],
        seeds: Sequence[int],
        role: str,
        *,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        most = max(widths)
        for layer, (before, after) in enumerate(pairwise([inputs, *[most] * layers, outputs])):
            weight, bias = torch.zeros(len(seeds), before, after), torch.zeros(len(seeds), 1, after)
            for n, (width, seed) in enumerate(zip(widths, seeds, strict=True)):
                last = layer == layers
                rows, columns = before if layer == 0 else width, after if last else width
                if not (zero_last and last):
                    bound = 1 / math.sqrt(rows)  # as torch's own layer
                    drawn = Draws(seed).uniform(f"{role}/{layer}", 0, (rows + 1) * columns).reshape(rows + 1, columns)
                    weight[n, :rows, :columns], bias[n, :, :columns] = (2 * bound * drawn - bound).split([rows, 1])
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, inputs) → (N, B, outputs)."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        return x


def parameters(inputs: int, outputs: int, layers: int, width: int) -> int:
    """Of one network of a stack, without the zeros that fill it up."""
    return sum((before + 1) * after for before, after in pairwise([inputs, *[width] * layers, outputs]))


class Students(nn.Module):
    """One-step students: noise and label → point."""

    def __init__(self, conditions: int, layers: int, widths: Sequence[int], seeds: Sequence[int]) -> None:
        super().__init__()
        self.conditions = conditions
        self.stack = Stack(2 + conditions, 2, layers, widths, seeds, "student")

    def generate(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Unit noise (N, B, 2) under conditions (N, B) → points (N, B, 2)."""
        return self.stack(torch.cat([noise, F.one_hot(cond, self.conditions).float()], dim=-1))


class FakeScores(nn.Module):
    """Denoisers of the students' points. They begin as the teacher: its denoiser plus a correction that starts at 0."""

    def __init__(self, conditions: int, layers: int, widths: Sequence[int], seeds: Sequence[int]) -> None:
        super().__init__()
        self.conditions = conditions
        self.stack = Stack(3 + conditions, 2, layers, widths, seeds, "fake-score", zero_last=True)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Tensor, teacher: Tensor) -> Tensor:
        """x0 of x (N, B, 2) at σ (N, B) under c (N, B), given the teacher's own ``teacher`` (N, B, 2)."""
        s = sigma.unsqueeze(-1)
        total = (s.square() + SIGMA_DATA**2).sqrt()  # EDM's scales of input and output
        inputs = [x / total, s.log() / 4, F.one_hot(cond, self.conditions).float()]
        return teacher + s * SIGMA_DATA / total * self.stack(torch.cat(inputs, dim=-1))
