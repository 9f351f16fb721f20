"""Velocity prediction and flow matching: is it the target, the schedule or the weight that a representation depends on?

This module is read whenever stages are listed, so it imports nothing heavy; the mathematics is in process.py.
"""

from ablation.stage import Stage

PROCESS = "ablation_flow_matching.process"

V_PREDICTION = Stage(
    name="v_prediction",
    after="patch_pca",
    title="predict v",
    table="table3",
    changes={"process.target": "v"},
    effects=("target", "sampling"),
    incomparable=("training loss",),
    provides={"target:v": f"{PROCESS}:v"},
    doc="""Predict v = gamma noise - sigma z_0.  (Salimans & Ho 2022, section 4)

Changes   the target alone; sampling can now start at the last level, where noise prediction says nothing of z_0.
Keeps     schedule, uniform weight.
Why       between noise and clean prediction: an error of v is an error of z_0 times 1 / sigma.
Beware    training losses are not comparable with the parent's.""",
)

FLOW_MATCHING = Stage(
    name="flow_matching",
    after="patch_pca",
    title="flow matching",
    table="table3",
    changes={"process.schedule": "straight", "process.target": "velocity"},
    effects=("input", "target", "evaluation", "sampling"),
    incomparable=("training loss", "noise level at the probed timestep"),
    provides={"schedule:straight": f"{PROCESS}:straight", "target:velocity": f"{PROCESS}:velocity"},
    doc="""Move on a straight line from image to noise and predict the velocity.  (Lipman et al. 2023, Eq. 20-23)

Changes   the schedule: gamma = 1 - t/T, sigma = t/T; and the target: the velocity noise - z_0.
Keeps     uniform weight over levels, as conditional flow matching has it; tokenizer.
Why       what most image generators are trained with today.
Beware    two things move at once, as one needs the other; the probe's t = 10 is another noise level than in the parent.""",
)

LOGIT_NORMAL_WEIGHT = Stage(
    name="logit_normal_weight",
    after="flow_matching",
    title="logit-normal weight",
    table="table3",
    changes={"process.loss_weight": "logit_normal"},
    effects=("loss",),
    incomparable=("training loss",),
    provides={"weight:logit_normal": f"{PROCESS}:logit_normal"},
    doc="""Weigh the levels in the middle most, as Stable Diffusion 3 does.  (Esser et al. 2024, section 3.1)

Changes   the loss weight: the density of a logit-normal t, which is drawing t from it instead of uniformly, in expectation.
Keeps     schedule and target of flow matching.
Why       the ends of the line are easy: one is the image, the other pure noise.
Beware    a weight, not a sampling of t: the same mean gradient, with more variance.""",
)

STAGES = [V_PREDICTION, FLOW_MATCHING, LOGIT_NORMAL_WEIGHT]
