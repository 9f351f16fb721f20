"""The diffusion process: schedules, targets, losses and samplers as pure functions."""
