"""Latents: the autoencoder around a text-conditional denoiser, and archives of what it makes of images."""
