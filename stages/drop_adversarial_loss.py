"""Retrain the tokenizer without the adversarial loss as well.  (Table 1, row 4)

Changes   the patch discriminator goes; what is left is a plain convolutional VAE.
Keeps     architecture of the tokenizer, KL term, denoiser.
Why       shows how little of the accuracy rests on a tokenizer made for sharp images.
Beware    training losses are not comparable with the parent's: the latents differ.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="drop_adversarial_loss",
    after="drop_perceptual_loss",
    title="remove VQGAN adversarial loss",
    table="table1",
    changes={"tokenizer.adversarial_weight": 0.0},
    effects=("tokenizer", "input"),
    incomparable=("training loss",),
)
