"""Latents: the autoencoder around a text-conditional denoiser, and archives of what it makes of images."""

TINY = "tiny_vae"  # the folder of a tiny decoder, beside the autoencoder's ``vae``
