"""End-to-end fine-tuning of the encoder half by MAE's recipe: what is trained, on which loss, and how it is measured.

The encoder is exported as a plain ViT with the time step folded in; what comes before it, the tokenizer's encoding and the scale
of the latents, is a frozen front end, the same that the probe looks through. (Paper, appendix B.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import ablation.torchvision_compat  # noqa: F401  before timm, which imports torchvision
from ablation.data.augmentations import seeded
from ablation.data.images import ImageSet
from ablation.data.latents import to_tensor
from ablation.evaluation.features import FeatureExtractor
from ablation.evaluation.scores import top_k_correct
from ablation.tokenizers.base import Tokenizer
from ablation.train.noise import NoiseSource, stream_seed

from timm.optim import param_groups_layer_decay  # isort: skip

TEST_BATCH = 256


class FrontEnd:
    """The frozen map from images to the encoder's input tokens, as a map on the token grid: clean input at the probed time step."""

    def __init__(self, tokenizer: Tokenizer, extractor: FeatureExtractor) -> None:
        self.tokenizer, self.extractor = tokenizer, extractor

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [-1, 1] to (B, in_dim, grid, grid)."""
        raw, _ = self.tokenizer.encode(images)  # (B, N, d)
        tokens = self.extractor.tokens(self.extractor.scaler(raw), images if self.extractor.needs_images else None, None)
        grid = self.tokenizer.grid
        return tokens.transpose(1, 2).unflatten(2, (grid, grid))  # (B, N, in_dim) -> (B, in_dim, grid, grid)


class FinetuneObjective:
    """Cross-entropy against the mixed, smoothed targets, with a lower learning rate for lower layers."""

    phases: tuple[str, ...] = ("classifier",)

    def __init__(self, classifier: nn.Module, front_end: FrontEnd, *, weight_decay: float, layer_decay: float) -> None:
        self.classifier, self.front_end = classifier.train(), front_end
        self.weight_decay, self.layer_decay = weight_decay, layer_decay

    def modules(self) -> dict[str, nn.Module]:
        """Return everything with weights that are trained."""
        return {"classifier": self.classifier}

    def parameters(self, phase: str) -> list[nn.Parameter]:
        """Return every trained parameter; there is one phase."""
        return list(self.classifier.parameters())

    def parameter_groups(self, phase: str) -> list[dict[str, object]]:
        """Return timm's groups for layer-wise decay: rate x layer_decay^(layers above); no weight decay on vectors and positions."""
        groups: list[dict[str, object]] = param_groups_layer_decay(
            self.classifier, self.weight_decay, no_weight_decay_list={"pos_embed"}, layer_decay=self.layer_decay
        )
        return groups

    def begin_step(self, batch: dict[str, Tensor], noise: NoiseSource, progress: float) -> None:
        """Send the images through the front end. `progress` is not used."""
        self._tokens = self.front_end(batch["images"])
        self._targets = batch["targets"]
        self._seed = stream_seed(noise.seed, "drop path", noise.start)

    def loss(self, phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy of the batch, and the share of images whose likeliest target is hit."""
        with seeded(self._seed, (self._tokens.device,)):  # stochastic depth draws from torch's global state
            logits = self.classifier(self._tokens).float()  # (B, classes)
        loss = -(self._targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        hit = (logits.argmax(dim=1) == self._targets.argmax(dim=1)).float().mean()
        return loss, {"training_accuracy": 100 * hit.detach()}


@torch.no_grad()
def classify(
    classifier: nn.Module, front_end: FrontEnd, images: ImageSet, device: torch.device, stopped: Callable[[], None]
) -> tuple[float, Tensor]:
    """Return the top-1 accuracy on centre crops in percent and which images were right, (n,) bool; `stopped` may raise."""
    classifier.eval()
    correct = []
    for start in range(0, len(images), TEST_BATCH):
        stopped()
        indices = np.arange(start, min(start + TEST_BATCH, len(images)))
        logits = classifier(front_end(to_tensor(images.batch(indices), device))).float().cpu()
        correct.append(top_k_correct(logits, torch.from_numpy(np.asarray(images.labels)[indices]))[0])
    right = torch.cat(correct)
    return 100 * float(right.double().mean()), right
