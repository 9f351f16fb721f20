"""Predict the original image rather than its PCA reconstruction: the final l-DAE.  (Table 3, row 6; Eq. 4)

Changes   the target is x_0 itself; the residual is measured over all D principal components, the ones beyond the
          latent dimension with weight 0.1.
Keeps     the input: noise is still added in the d-dimensional PCA subspace only.
Why       the target of a classical denoising autoencoder is the image.
Beware    training losses are not comparable with the parent's: more components are counted.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="predict_original",
    after="inverse_pca_output",
    title="predict original image",
    table="table3",
    changes={"process.target": "original"},
    effects=("target", "loss"),
    requires={"process.output_space": "image", "process.target": "clean"},
    incomparable=("training loss",),
)
