"""Predict image patches: the target goes back through the inverse PCA as well.  (Table 3, row 5)

Changes   the output space: the target is V^T V x_0, the image kept by the PCA.
Keeps     the input, the noise levels, the weight per level.
Why       input and output of a classical denoising autoencoder are images.
Beware    the squared error is now taken in pixel units (`process.image_loss_units`), so with whitened latents the
          components count by their variance; training losses are not comparable.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="inverse_pca_output",
    after="inverse_pca_input",
    title="operate on image output with inverse PCA",
    table="table3",
    changes={"process.output_space": "image"},
    effects=("target", "parameters", "sampling"),
    requires={"tokenizer.kind": ("patch_pca", "pixels")},
    incomparable=("training loss",),
)
