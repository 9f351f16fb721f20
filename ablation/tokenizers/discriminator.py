"""The patch discriminator and the terms of the adversarial loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_MAX_WEIGHT = 1e4  # both as in LDM
_SAFE_NORM = 1e-4


class PatchDiscriminator(nn.Module):
    """Judge overlapping patches of an image as real (high) or reconstructed (low) with a small convolutional network.

    The design is PatchGAN's (pix2pix, arXiv 1611.07004): 4x4 convolutions, of which 1 to 3 halve the resolution, so that the
    field of view (16, 34 or 70 pixels) stays within about half the image; three from 128 pixels on, as in LDM. Group
    normalisation stands in for batch normalisation: the verdict on an image must not depend on the images beside it.
    Shapes: (B, 3, H, W) in [-1, 1] -> (B, 1, h, w) logits.
    """

    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        halvings = min(3, max(1, image_size.bit_length() - 5))
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for level in range(1, halvings + 1):
            after = width * 2**level
            stride = 2 if level < halvings else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), nn.GroupNorm(1, after), nn.LeakyReLU(0.2)]
            before = after
        layers.append(nn.Conv2d(before, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return one logit per patch: (B, 3, H, W) -> (B, 1, h, w)."""
        return self.layers(images).float()


def hinge_loss(real: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the discriminator's hinge loss, half of mean(relu(1 - real)) + mean(relu(1 + reconstructed)); logits of any shape."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + reconstructed).mean())


def adaptive_weight(reconstruction_grad: Tensor, adversarial_grad: Tensor) -> Tensor:
    """Return the factor that makes the adversarial gradient as large as the reconstruction's (VQGAN, arXiv 2012.09841, Eq. 7).

    Both are gradients at the decoder's last layer, of the same shape; the factor is ||a|| / (||b|| + 1e-4), at most 1e4.
    """
    ratio = reconstruction_grad.norm() / (adversarial_grad.norm() + _SAFE_NORM)
    return ratio.clamp(max=_MAX_WEIGHT).detach()
