"""Retrain the tokenizer without the perceptual loss.  (Table 1, row 3)

Changes   the tokenizer's reconstruction term: squared error alone, no features of a label-trained network.
Keeps     architecture of the tokenizer, adversarial loss, denoiser.
Why       the perceptual network was trained on class labels and passes them on to the latents.
Beware    first row that is self-supervised throughout. Another tokenizer means other latents: training losses are
          not comparable with the parent's.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="drop_perceptual_loss",
    after="drop_class_conditioning",
    title="remove VQGAN perceptual loss",
    table="table1",
    changes={"tokenizer.perceptual_weight": 0.0},
    effects=("tokenizer", "input"),
    incomparable=("training loss",),
)
