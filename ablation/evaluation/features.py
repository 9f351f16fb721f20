"""Features of a frozen encoder: which input it sees, at which time step, from which block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.data.images import ImageSet
from ablation.data.latents import LatentScaler, to_tensor
from ablation.data.shards import ShardedArray
from ablation.denoiser.dit import DiT
from ablation.diffusion.process import Process, at
from ablation.diffusion.space import PatchSpace
from ablation.train.noise import NoiseSource
from ablation.train.prefetch import ahead


class FeatureExtractor:
    """Maps raw latents and images to pooled features of one block, at a fixed time step.

    Clean input is gamma_t z_0, noisy input gamma_t z_0 + sigma_t noise, with t = probe.timestep (paper, evaluation and
    appendix A). Image-input networks see the whole image ("raw") or what the latents keep of it ("projected").
    """

    def __init__(
        self, denoiser: DiT, process: Process, scaler: LatentScaler, space: PatchSpace | None, cfg: ProbeConfig, device: torch.device
    ) -> None:
        self.denoiser, self.process, self.scaler, self.space, self.cfg, self.device = denoiser.eval(), process, scaler, space, cfg, device

    @property
    def needs_images(self) -> bool:
        """Whether pixels are read, rather than latents alone."""
        return self.process.input_space == "image" and self.cfg.input == "raw"

    @property
    def width(self) -> int:
        """Numbers in one image's features."""
        return self.denoiser.width

    @torch.no_grad()
    def __call__(self, raw: Tensor, images: Tensor | None, noise: NoiseSource | None = None) -> Tensor:
        """Return average-pooled features. raw (B, N, d), images (B, 3, H, W) where needed -> (B, width) float32."""
        return self.token_features(raw, images, noise).mean(dim=1)  # (B, N, width) -> (B, width)

    @torch.no_grad()
    def token_features(self, raw: Tensor, images: Tensor | None, noise: NoiseSource | None = None) -> Tensor:
        """Return features token by token. raw (B, N, d), images (B, 3, H, W) where needed -> (B, N, width) float32."""
        tokens = self.tokens(self.scaler(raw), images, noise)
        t = torch.full((len(tokens),), self.cfg.timestep, dtype=torch.int64, device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.cfg.precision == "bf16"):
            time = self.process.network_time(t)
            if self.cfg.block is None:
                features = self.denoiser.encode(tokens, time)  # (B, N, width)
            else:
                features = self.denoiser.encode(tokens, time, blocks=[self.cfg.block])[0]  # (B, N, width)
        return features.float()

    def tokens(self, z0: Tensor, images: Tensor | None, noise: NoiseSource | None) -> Tensor:
        """Build the network's input (B, N, in_dim) from scaled latents (B, N, d), and from pixels where it reads them."""
        t = torch.full((len(z0),), self.cfg.timestep, dtype=torch.int64, device=self.device)
        epsilon = noise.normal("probe noise", tuple(z0.shape[1:])) if self.cfg.noisy_input and noise is not None else torch.zeros_like(z0)
        if self.process.input_space == "latent" or self.space is None:
            return self.process.corrupt(z0, t, epsilon)
        if images is None:
            return self.space.to_image(self.process.corrupt(z0, t, epsilon))
        tokens = self.space.normalise(images)  # (B, 3, H, W) -> (B, N, D)
        added = self.space.noise_to_image(at(self.process.sigma, t, z0) * epsilon)  # (B, N, d) -> (B, N, D)
        return at(self.process.gamma, t, tokens) * tokens + added


def extract(
    extractor: FeatureExtractor,
    means: ShardedArray,
    images: ImageSet,
    *,
    mirrored: bool,
    seed: int,
    batch: int,
    device: torch.device,
    out: Tensor | None = None,
) -> Tensor:
    """Return features of a whole split from its stored latents, (images, width) float32 on the CPU; `out` is filled where given."""

    def load(start: int) -> tuple[np.ndarray, np.ndarray | None]:
        indices = np.arange(start, min(start + batch, len(means)))
        return means[indices], images.batch(indices) if extractor.needs_images else None

    found = torch.empty(len(means), extractor.width) if out is None else out
    for start, (latents, plain) in ahead(load, range(0, len(means), batch)):
        pixels = None
        if plain is not None:
            pixels = to_tensor(np.ascontiguousarray(plain[:, :, ::-1]) if mirrored else plain, device)
        raw = torch.from_numpy(latents).to(device).float()
        found[start : start + len(raw)] = extractor(raw, pixels, NoiseSource(seed, start, len(raw), device)).cpu()
    return found


def extract_tokens(
    extractor: FeatureExtractor,
    means: ShardedArray,
    images: ImageSet,
    *,
    span: tuple[int, int],
    seed: int,
    batch: int,
    device: torch.device,
) -> Tensor:
    """Return features token by token of the images from span[0] to before span[1], (images, N, width) float32 on the CPU."""
    found = []
    for start in range(span[0], span[1], batch):
        indices = np.arange(start, min(start + batch, span[1]))
        pixels = to_tensor(images.batch(indices), device) if extractor.needs_images else None
        raw = torch.from_numpy(np.asarray(means[indices])).to(device).float()
        found.append(extractor.token_features(raw, pixels, NoiseSource(seed, start, len(indices), device)).cpu())
    return torch.cat(found)
