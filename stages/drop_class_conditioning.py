"""Train the denoiser without class labels.  (Table 1, row 2)

Changes   the label embedding goes; one network for unconditional generation.
Keeps     tokenizer, schedule, target, training length.
Why       a representation that was told the label is no self-supervised one.
Beware    the tokenizer's perceptual network still saw labels, so the row stays grey. The paper contradicts itself
          here: 62.5 / FID 30.9 in the table, 62.1 / 34.2 in the text.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="drop_class_conditioning",
    after="baseline",
    title="remove class-conditioning",
    table="table1",
    changes={"denoiser.class_conditional": False},
    effects=("conditioning", "parameters", "sampling"),
    uses_labels=True,
)
