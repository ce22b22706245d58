"""Training a backbone from nothing on a user's own images: an autoencoder, then a class-conditional denoiser of its latents.

The embedded starters are made by the same code; see `dap.starter.train` and `dap.starter.unet`.
"""
