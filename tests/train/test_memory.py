"""A training's memory does not grow with its data set: the same training on eight times as many latents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL, LARGE = 20_000, 160_000
TOKENS, DIM = 64, 8  # a kibibyte an image

PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from ablation.data import latents as module
from ablation.data.latents import LatentBatches, LatentStore
from ablation.data.shards import write_shard
from ablation.store import LATENTS, STATISTICS, write_json
from ablation.train.checkpoint import save_tensors
from ablation.train.noise import ImageOrder, NoiseSource
from ablation.train.prefetch import ahead

def own():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

folder, images, tokens, dim = Path(sys.argv[1]), *map(int, sys.argv[2:])
rows = images // 4
entries = []
for number in range(4):
    name = f"latents-train-plain-mean-{number:05d}.npy"
    with write_shard(folder / name, (rows, tokens, dim), np.float16) as file:
        for _ in range(rows // 1000):
            file.append(np.full((1000, tokens, dim), number))
    entries.append(file.entry(name))
save_tensors(folder / STATISTICS, {"mean": torch.zeros(dim), "variance": torch.ones(dim), "token_mean": torch.zeros(tokens, dim),
                                   "token_covariance": torch.zeros(dim, tokens, tokens)})
write_json(folder / LATENTS, {"arrays": {"latents-train-plain-mean.npy": entries}})
class Set:
    labels = np.zeros(images, np.int64)
    def __len__(self): return images
    def where_from(self, random_crops): return ""
store = LatentStore(folder)
batches = LatentBatches(store, store.scaler("none"), Set(), sample_posterior=False, horizontal_flip=False, with_images=False,
                        tokenizer=None, device=torch.device("cpu"))
order = ImageOrder(images, 0)
def load(start):
    noise = NoiseSource(0, start, 256)
    return batches.load(order.indices(start, 256), np.arange(start, start + 256), noise), noise
peak = 0
for start, (loaded, noise) in ahead(load, range(0, 2 * images, 256 * (images // 20_000))):
    batches.finish(loaded, noise)
    peak = max(peak, own())
print(peak)
"""


def peak(folder: Path, images: int) -> float:
    """Return the MiB of its own memory, mapped files apart, that a process has at most while it reads batches over two epochs."""
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(folder), str(images), str(TOKENS), str(DIM)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_a_trainings_own_memory_does_not_grow_with_the_latents(tmp_path):
    small, large = peak(tmp_path / "small", SMALL), peak(tmp_path / "large", LARGE)
    latents = (LARGE - SMALL) * TOKENS * DIM * 2 / 2**20
    order_and_labels = (LARGE - SMALL) * 40 / 2**20  # 8 bytes for the label, 8 for each of two permutations, and one in the making
    assert latents > 130
    assert large - small < order_and_labels + 8
