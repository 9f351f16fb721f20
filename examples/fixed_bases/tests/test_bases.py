"""The bases are orthonormal, known and invertible; the stages do what they declare."""

from __future__ import annotations

import pytest
import scipy.fft
import torch
from ablation_fixed_bases import STAGES
from ablation_fixed_bases.bases import DCT, RandomBasis, cosines

import ablation
from ablation.config import TokenizerConfig
from ablation.errors import ArtifactError
from ablation.tokenizers.base import patchify

IMAGES = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
SMOOTH = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(IMAGES, (2, 2, 2, 2), mode="reflect"), 5, stride=1)


def fitted(kind, dim=48, images=SMOOTH):
    tokenizer = kind(TokenizerConfig(kind="x", latent_dim=dim, patch_size=4), 16)
    tokenizer.fit(images.split(16))
    return tokenizer


@pytest.mark.parametrize("kind", [DCT, RandomBasis])
def test_rows_are_orthonormal_and_all_of_them_lose_nothing(kind):
    tokenizer = fitted(kind)
    assert torch.allclose(tokenizer.basis @ tokenizer.basis.T, torch.eye(48), atol=1e-5)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(IMAGES)[0]), IMAGES, atol=1e-5)


def test_cosines_are_scipys():
    assert torch.allclose(cosines(8), torch.from_numpy(scipy.fft.dct(torch.eye(8).double().numpy(), axis=0, norm="ortho")), atol=1e-12)


def test_latents_are_the_dct_of_the_centred_patch():
    tokenizer = fitted(DCT)
    patch = (patchify(IMAGES, 4)[0, 0] - tokenizer.center).reshape(4, 4, 3)
    wanted = torch.from_numpy(scipy.fft.dctn(patch.numpy(), norm="ortho")).flatten()
    found = tokenizer.encode(IMAGES)[0][0, 0]
    assert torch.allclose(found.sort().values, wanted.float().sort().values, atol=1e-4)


def test_the_first_components_hold_the_most_variance():
    tokenizer = fitted(DCT)
    assert (tokenizer.eigenvalues.diff() <= 1e-9).all()
    z = tokenizer.encode(SMOOTH)[0].flatten(0, 1)
    assert torch.allclose(z.var(dim=0), tokenizer.eigenvalues, rtol=1e-3, atol=1e-5)
    few, many = (fitted(DCT, dim) for dim in (4, 16))
    errors = [float((one.decode(one.encode(SMOOTH)[0]) - SMOOTH).square().mean()) for one in (few, many)]
    assert errors[1] < errors[0]


def test_the_random_basis_is_always_the_same_and_spreads_the_variance():
    one, two = fitted(RandomBasis), fitted(RandomBasis, images=IMAGES)
    assert torch.equal(one.basis, two.basis)
    kept = fitted(RandomBasis, 12).eigenvalues[:12].sum() / one.eigenvalues.sum()
    assert 0.1 < float(kept) < 0.4


def test_without_a_mean_patch_nothing_is_encoded():
    with pytest.raises(ArtifactError, match="no mean patch"):
        DCT(TokenizerConfig(kind="dct", latent_dim=8, patch_size=4), 16).encode(IMAGES)


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_every_stage_does_what_it_declares(stage):
    verdict = ablation.check(stage)
    assert verdict.passed, verdict.problems
