"""Train with one noise level only: sigma = sqrt(1/3).  (Text after Table 3)

Changes   every image gets the same amount of noise; the network is told the same time step always.
Keeps     everything else of the final l-DAE.
Why       asks whether the many levels of diffusion are needed; the paper loses 3 points.
Beware    the mean noise variance falls from 2/3 to 1/3, so two things move at once. There is no reverse process, so
          FID is not defined. Training losses are not comparable.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="single_noise_level",
    after="predict_original",
    title="single noise level",
    table="table3",
    changes={"process.schedule": "constant"},
    effects=("input", "conditioning", "loss", "evaluation", "sampling"),
    incomparable=("training loss", "noise level at the probed timestep"),
)
