"""Deconstruct a diffusion model step by step and measure what each part is worth."""
