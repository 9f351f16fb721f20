"""Swap the convolutional tokenizer for a linear VAE on single patches.  (Table 2, row 2)

Changes   encoder and decoder become one linear map each, on one flattened patch per token.
Keeps     latent dimension per token, KL term, denoiser and process.
Why       asks whether convolutions and depth in the tokenizer matter for the representation.
Beware    training losses are not comparable with the parent's: the latents differ.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="patch_vae",
    after="linear_gamma_schedule",
    title="patch-wise VAE",
    table="table2",
    changes={"tokenizer.kind": "patch_vae"},
    effects=("tokenizer", "input"),
    requires={"tokenizer.perceptual_weight": 0.0, "tokenizer.adversarial_weight": 0.0},
    incomparable=("training loss",),
)
