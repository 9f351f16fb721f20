"""The denoiser: a diffusion transformer, its files, and its exchange with diffusers and timm."""
