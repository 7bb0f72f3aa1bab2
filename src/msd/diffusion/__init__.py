"""Noise grids and samplers: functions of tensors, no networks, no files."""

from msd.diffusion.grids import karras_sigmas
from msd.diffusion.samplers import heun

__all__ = ["heun", "karras_sigmas"]
