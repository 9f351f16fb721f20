"""Feed the network images: the noisy latent goes back through the inverse PCA.  (Table 3, row 4)

Changes   the input space: x_t = V^T (V x_0 + sigma_t eps), patches of pixels with noise in the PCA subspace only.
Keeps     the corruption itself, the latent target, the loss.
Why       a classical denoising autoencoder works on images.
Beware    the probe now feeds whole images, whose part outside the subspace the network never saw in training;
          `probe.input=projected` removes that part first.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="inverse_pca_input",
    after="drop_input_scaling",
    title="operate on image input with inverse PCA",
    table="table3",
    changes={"process.input_space": "image"},
    effects=("input", "parameters", "evaluation"),
    requires={"tokenizer.kind": ("patch_pca", "pixels")},
)
