"""The closed-form tokenizer against eigendecompositions by other code, and its streaming statistics against one batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from tokenizer_cases import SIZE, settings, smooth_images

from ablation.errors import ArtifactError, DataError
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.base import patchify
from ablation.tokenizers.patch_pca import PatchPCA
from ablation.tokenizers.pca import PatchCovariance, fix_signs, principal_components

IMAGES = smooth_images(200)


def fitted(latent_dim: int = 8, **changes: int) -> PatchPCA:
    tokenizer = PatchPCA(settings("patch_pca", latent_dim=latent_dim, **changes), SIZE)
    tokenizer.fit(IMAGES.split(64))
    return tokenizer


def statistics_of(*batches: torch.Tensor, patch_size: int = 4) -> PatchCovariance:
    statistics = PatchCovariance(patch_size)
    for images in batches:
        statistics.update(images)
    return statistics


WHOLE = statistics_of(IMAGES)
WHOLE_COMPONENTS = principal_components(WHOLE)


def test_variances_agree_with_float64_to_1e_4_down_to_the_smallest() -> None:
    patches = patchify(IMAGES, 4).flatten(0, 1).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(patches.T))[::-1]
    found = fitted().eigenvalues.numpy()
    assert expected[0] / expected[-1] > 1e4  # or else the smallest would be easy
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_large_patches_are_multiplied_in_float32_and_still_accurate() -> None:
    images = smooth_images(250, size=40)
    patches = patchify(images, 10).flatten(0, 1).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(patches.T))[::-1]
    found = principal_components(statistics_of(*images.split(100), patch_size=10)).eigenvalues
    np.testing.assert_allclose(found[:100], expected[:100], rtol=1e-4)
    assert not np.allclose(found, expected, rtol=1e-9)  # or else it was float64


def test_components_agree_with_scikit_learn_up_to_sign() -> None:
    patches = patchify(IMAGES, 4).flatten(0, 1).double().numpy()
    peer = PCA(svd_solver="full").fit(patches)
    tokenizer = fitted()
    cosines = np.abs((tokenizer.basis.double().numpy() * peer.components_).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    np.testing.assert_allclose(tokenizer.center.numpy(), peer.mean_, atol=1e-6)
    encoded = tokenizer.encode(IMAGES)[0].flatten(0, 1)
    np.testing.assert_allclose(np.abs(encoded), np.abs(peer.transform(patches)[:, :8]), atol=1e-3)


def test_a_strong_constant_offset_costs_no_accuracy() -> None:
    """Float32 products of unshifted patches would lose the small variances."""
    offset = statistics_of(*(IMAGES * 0.01 + 0.9).split(50))
    plain = statistics_of(IMAGES)
    np.testing.assert_allclose(principal_components(offset).eigenvalues, principal_components(plain).eigenvalues * 1e-4, rtol=1e-3)


def test_the_basis_is_orthonormal_and_ordered() -> None:
    tokenizer = fitted()
    torch.testing.assert_close(tokenizer.basis @ tokenizer.basis.T, torch.eye(48), atol=1e-5, rtol=0)
    assert (tokenizer.eigenvalues.diff() <= 0).all()
    assert tokenizer.basis.shape == (48, 48)  # all components, though only 8 are used


def test_all_components_reconstruct_exactly_and_fewer_do_not() -> None:
    full, few = fitted(48), fitted(8)
    torch.testing.assert_close(full.decode(full.encode(IMAGES)[0]), IMAGES, atol=1e-5, rtol=0)
    error = (few.decode(few.encode(IMAGES)[0]) - IMAGES).square().mean()
    lost = few.eigenvalues[8:].sum() / 48
    torch.testing.assert_close(error, lost, rtol=1e-2, atol=0)


def test_whitened_latents_have_unit_variance_and_no_correlation() -> None:
    latents = fitted().encode(IMAGES)[0].flatten(0, 1)
    shift, scale = latents.mean(0), latents.std(0)
    torch.testing.assert_close(shift, torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(scale.square(), fitted().eigenvalues[:8], rtol=1e-3, atol=0)
    whitened = (latents - shift) / scale
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(8), atol=1e-3, rtol=0)


@hypothesis_settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(0, 200), max_size=5))
def test_neither_batches_nor_merging_change_the_result(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 200]
    pieces = [IMAGES[a:b] for a, b in itertools.pairwise(edges)]
    streamed = statistics_of(*pieces)
    merged = PatchCovariance(4)
    for piece in pieces:
        merged.merge(statistics_of(*piece.split(7)))  # each with another shift; empty pieces among them
    for other in (streamed, merged):
        assert other.count == WHOLE.count
        np.testing.assert_allclose(other.mean(), WHOLE.mean(), atol=1e-7)
        np.testing.assert_allclose(other.covariance(), WHOLE.covariance(), atol=1e-6)
        found, expected = principal_components(other), WHOLE_COMPONENTS
        np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-4)
        np.testing.assert_allclose(found.basis[:8], expected.basis[:8], atol=1e-3)


def test_merging_other_patch_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="size 2"):
        PatchCovariance(4).merge(PatchCovariance(2))


def test_signs_do_not_depend_on_how_the_solver_chose_them() -> None:
    basis = fitted().basis.double().numpy()
    flips = np.random.default_rng(0).choice([-1.0, 1.0], size=(48, 1))
    np.testing.assert_array_equal(fix_signs(basis * flips), fix_signs(basis))
    np.testing.assert_array_equal(fix_signs(basis), basis)


def test_signs_survive_rounding_in_odd_symmetric_components() -> None:
    """With mirrored images the largest entries come in pairs (+a, -a), which rounding orders at random."""
    component = np.array([[-0.5, -0.5, 0.5, 0.5]])
    for noise in (1e-9, -1e-9):
        np.testing.assert_allclose(fix_signs(component + noise * np.array([1, -1, 1, -1])), [[0.5, 0.5, -0.5, -0.5]], atol=1e-8)


def test_a_mirrored_set_gives_the_same_signs_in_any_order() -> None:
    both = torch.cat([IMAGES, IMAGES.flip(3)])
    first = principal_components(statistics_of(*both.split(37))).basis[:8]
    second = principal_components(statistics_of(*both.flip(0).split(50))).basis[:8]
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_too_few_patches_non_finite_pixels_and_an_unfitted_basis_are_refused() -> None:
    tokenizer = PatchPCA(settings("patch_pca", latent_dim=20), SIZE)
    with pytest.raises(ArtifactError, match="no basis yet"):
        tokenizer.encode(IMAGES)
    with pytest.raises(ArtifactError, match="no basis yet"):
        tokenizer.decode(torch.zeros(1, 16, 20))
    with pytest.raises(DataError, match="16 patches cannot determine 20"):
        tokenizer.fit([IMAGES[:1]])
    broken = IMAGES.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="non-finite"):
        tokenizer.fit([broken])


def test_fewer_than_two_patches_have_no_covariance() -> None:
    with pytest.raises(DataError, match="1 patches"):
        statistics_of(IMAGES[:1, :, :4, :4]).covariance()


def test_a_saved_basis_loads_into_a_fresh_tokenizer() -> None:
    cfg = settings("patch_pca")
    fresh = build_tokenizer(cfg, SIZE, {})
    fresh.load_state_dict(fitted().state_dict())
    torch.testing.assert_close(fresh.encode(IMAGES[:4])[0], fitted().encode(IMAGES[:4])[0])
