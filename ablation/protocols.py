"""What each kind of part must be, as protocols. Light: nothing here runs; docs/plugins.md has an example of each.

A part is any object that can be called as its protocol's __call__ says: a function, a class, or an instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ablation.config import DenoiserConfig, ProbeConfig, ProcessConfig, TokenizerConfig
    from ablation.launch.base import Launcher
    from ablation.tokenizers.base import Tokenizer


class TokenizerPart(Protocol):
    """A class that derives from ablation.tokenizers.base.Tokenizer: images to tokens and back."""

    def __call__(self, cfg: TokenizerConfig, image_size: int) -> Tokenizer:
        """Build it with fresh weights."""


class SchedulePart(Protocol):
    """How much of the clean latent and how much noise each level holds, z_t = gamma_t z_0 + sigma_t noise."""

    def __call__(self, cfg: ProcessConfig) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma for t = 0 (clean) to T = cfg.num_timesteps, float64 (T+1,) each.

        gamma_0 = 1, sigma_0 = 0; after that sigma > 0 and gamma / sigma falls from level to level.
        """


class TargetPart(Protocol):
    """What the network predicts: a mixture of clean latent and noise, target_t = a_t z_0 + b_t noise, in latent space."""

    def __call__(self, gamma: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b for every level, (T+1,) each, from gamma and sigma, (T+1,) each.

        Sampling inverts the mixture: z_0 = (b z_t - sigma target) / (gamma b - sigma a), so the divisor must not vanish.
        """


class WeightPart(Protocol):
    """How much the squared error of each level counts, lambda_t."""

    def __call__(self, gamma: Tensor, sigma: Tensor) -> Tensor:
        """Return lambda for every level, (T+1,), from gamma and sigma, (T+1,) each; finite and not below 0."""


class Denoiser(Protocol):
    """A network on token sequences whose middle is the representation."""

    width: int
    """Numbers per token of the representation."""

    def __call__(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map noisy tokens (B, N, in_dim) at times (B,) to predictions (B, N, out_dim); labels (B,) or None."""

    def encode(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None, blocks: list[int] | None = None) -> Any:
        """Return the representation (B, N, width); with blocks (counted from 1), a list with each one's output."""


class DenoiserPart(Protocol):
    """A class, a torch module, that is also a Denoiser."""

    def __call__(self, cfg: DenoiserConfig, in_dim: int, out_dim: int, grid: int, num_classes: int) -> nn.Module:
        """Build it with fresh weights; grid: tokens a side; num_classes: 0 for a network that is told no labels."""


class EvaluationContext(Protocol):
    """What an evaluation can ask for; all tensors are on the CPU, images in the order of the data set."""

    seed: int
    """Seed of every random choice the evaluation makes."""
    classes: tuple[str, ...]
    settings: ProbeConfig
    folder: Path
    """Where files may be left for a reader; they are kept with the job."""

    def features(self, split: Literal["train", "test"]) -> Tensor:
        """Return the frozen encoder's features, averaged over tokens, (images, width) float32, as the probes see them."""

    def token_features(self, split: Literal["train", "test"], first: int = 0, count: int | None = None) -> Tensor:
        """Return features token by token, (images, tokens, width) float32, of `count` images from `first` on."""

    def labels(self, split: Literal["train", "test"]) -> Tensor:
        """Return the class of each image, (images,) int64."""

    def images(self, split: Literal["train", "test"], first: int = 0, count: int | None = None) -> Tensor:
        """Return pixels, (images, height, width, 3) uint8, of `count` images from `first` on."""

    def progress(self, done: int, total: int, note: str) -> None:
        """Say how far it is; also where a stop that was asked for takes effect."""


class EvaluationPart(Protocol):
    """A measure of the frozen encoder; its metrics become columns of the report.

    It may have an attribute `titles`, a mapping from its metrics to the words of their columns, each ending in an arrow
    that says what is better.
    """

    def __call__(self, context: EvaluationContext) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """Return metrics, and the protocol: everything that must agree for two values to be compared."""


@dataclass(frozen=True)
class LauncherOptions:
    """What the command line says about how jobs are run; None where it says nothing. processes: how many share one training."""

    parallel: int | None
    threads: int | None
    checkpoint_seconds: float
    processes: int = 1


class LauncherPart(Protocol):
    """Brings the jobs of a plan to their end."""

    def __call__(self, options: LauncherOptions) -> Launcher:
        """Return something with run(plan, store, watcher, should_stop) -> Outcome, as ablation.launch.base describes it."""
