"""Let gamma^2 fall linearly, so that fewer steps are spent on almost pure noise.  (Table 1, row 5)

Changes   the noise schedule: gamma_t^2 = 1 - t/T instead of the product of DDPM's (1 - beta).
Keeps     noise prediction, tokenizer, sigma^2 = 1 - gamma^2.
Why       representation learning wants cleaner inputs than generation does.
Beware    the probe's t = 10 is another noise level than in the parent, and training losses are not comparable.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="linear_gamma_schedule",
    after="drop_adversarial_loss",
    title="replace noise schedule",
    table="table1",
    changes={"process.schedule": "linear_gamma_squared"},
    effects=("input", "evaluation", "sampling"),
    incomparable=("training loss", "noise level at the probed timestep"),
)
