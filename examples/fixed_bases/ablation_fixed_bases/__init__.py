"""Fixed orthonormal bases instead of PCA: does the representation need components fitted to the data, or any few numbers?

This module is read whenever stages are listed, so it imports nothing heavy; the tokenizers are in bases.py.
"""

from ablation.stage import Stage

DCT_TOKENIZER = Stage(
    name="dct_tokenizer",
    after="patch_pca",
    title="patch-wise DCT",
    table="table3",
    changes={"tokenizer.kind": "dct"},
    effects=("tokenizer", "input"),
    incomparable=("training loss",),
    provides={"tokenizer:dct": "ablation_fixed_bases.bases:DCT"},
    doc="""Take the discrete cosine transform of each patch instead of its PCA.

Changes   the basis: products of cosines in row, column and colour; the d components of most variance are kept.
Keeps     one token per patch, latent dimension, whitening, and so the noise's total energy; denoiser and process.
Why       the DCT is what PCA becomes on ideal stationary images: is PCA more than a choice of frequencies?
Beware    only the order of the components is measured on the data. Training losses are not comparable with the parent's.""",
)

RANDOM_BASIS = Stage(
    name="random_basis",
    after="patch_pca",
    title="random orthogonal basis",
    table="table3",
    changes={"tokenizer.kind": "random_basis"},
    effects=("tokenizer", "input"),
    incomparable=("training loss",),
    provides={"tokenizer:random_basis": "ablation_fixed_bases.bases:RandomBasis"},
    doc="""Project each patch on d random orthonormal directions instead of its principal components.

Changes   the basis: a random rotation, the same for every seed of the study; its first d rows are kept.
Keeps     one token per patch, latent dimension, whitening; denoiser and process.
Why       the control for `patch_pca` and `dct_tokenizer`: the same number of numbers, chosen without regard to images.
Beware    the rows share the variance about evenly, so d of D keep about d/D of it: far less of the image survives.""",
)

STAGES = [DCT_TOKENIZER, RANDOM_BASIS]
