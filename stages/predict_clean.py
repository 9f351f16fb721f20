"""Predict the clean latent instead of the noise.  (Table 3, row 2; Eq. 3)

Changes   the target, and the loss weight that goes with it: gamma^2, found better than the SNR in the paper.
Keeps     tokenizer, schedule, input scaling, training length.
Why       a classical denoising autoencoder predicts its clean input.
Beware    training losses are not comparable with the parent's: the target has another scale. The paper's loss of 2.7
          points at this row did not appear when noise prediction was put back into the final model.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="predict_clean",
    after="patch_pca",
    title="predict clean data (rather than noise)",
    table="table3",
    changes={"process.target": "clean", "process.loss_weight": "gamma_squared"},
    effects=("target", "loss", "sampling"),
    incomparable=("training loss",),
)
