"""Replace the learned patch autoencoder by PCA.  (Table 2, row 4; Table 3, row 1)

Changes   the tokenizer becomes the eigenvectors of the patch covariance, without gradient training; as in the paper's
          trajectory, the latent dimension per token goes from 16 to 32; and the latents are whitened.
Keeps     one token per patch, denoiser and process.
Why       the simplest tokenizer that fixes a low-dimensional latent space.
Beware    three things move at once. At a fixed dimension of 16 the paper's step is 64.7 to 63.4 (`ablate run --table 2`);
          the paper does not say how latents are scaled (`docs/open-settings.md` compares). Training losses differ in scale.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="patch_pca",
    after="patch_ae",
    title="patch-wise PCA",
    table="table3",
    changes={"tokenizer.kind": "patch_pca", "tokenizer.latent_dim": 32, "tokenizer.latent_scale": "whitened"},
    effects=("tokenizer", "input", "target", "parameters"),
    incomparable=("training loss",),
)
