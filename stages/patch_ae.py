"""Drop the KL term: a linear autoencoder on single patches.  (Table 2, row 3)

Changes   the tokenizer's KL regularisation and its sampling go.
Keeps     linear patch-wise encoder and decoder, latent dimension.
Why       asks whether the variational part of the tokenizer matters.
Beware    a linear autoencoder spans the PCA subspace, in an arbitrary basis. Training losses are not comparable.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="patch_ae",
    after="patch_vae",
    title="patch-wise AE",
    table="table2",
    changes={"tokenizer.kind": "patch_ae"},
    effects=("tokenizer", "input"),
    incomparable=("training loss",),
)
