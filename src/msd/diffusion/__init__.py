"""Noise grids, samplers and views of a denoiser: functions of tensors, no networks, no files."""

from msd.diffusion.grids import karras_sigmas
from msd.diffusion.samplers import heun, heun_sample

__all__ = ["heun", "heun_sample", "karras_sigmas"]
