"""Stop shrinking the input: gamma = 1 at every level, only noise is added.  (Table 3, row 3)

Changes   the schedule: gamma = 1, sigma linear from 0 to sqrt(2); and the loss weight 1 / (1 + sigma^2), which spans
          the same range of signal-to-noise ratios as before.
Keeps     clean prediction, tokenizer.
Why       a classical denoising autoencoder adds noise and does not scale its input.
Beware    the probe's t = 10 is another noise level than in the parent. At the last level half of the variance is
          still image, so sampling starts from a Gaussian with the latents' own mean and covariance.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="drop_input_scaling",
    after="predict_clean",
    title="remove input scaling",
    table="table3",
    changes={"process.schedule": "linear_sigma", "process.loss_weight": "inverse_variance"},
    effects=("input", "loss", "evaluation", "sampling"),
    incomparable=("training loss", "noise level at the probed timestep"),
)
