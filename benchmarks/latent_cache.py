"""A training batch of latents: read from the stored moments, or decoded and encoded each time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.data_loading import photographs
from benchmarks.harness import Row, alternate, compare, main, use_fast_products

NAME = "latent_cache"
TITLE = "Latents stored once, against encoding on the fly"
ABOUT = """
Batches of 64 images of 64 px through a convolutional VAE of the small scale (channels 32, 64, 64; stride 4). On the fly: JPEG
files decoded, cropped and encoded; a decoded cache in between; or the stored float16 means. The difference is that of float16.
"""

SIZE, BATCH = 64, 64


def run(quick: bool) -> Iterator[Row]:
    """Yield stored latents against encoding decoded pixels and against decoding files as well."""
    from ablation.config import Config, DataConfig, apply
    from ablation.data.images import open_images
    from ablation.data.latents import STORED, to_tensor
    from ablation.data.shards import ShardedArray, open_array, write_shard
    from ablation.tokenizers import build_tokenizer

    use_fast_products()
    settings = {"tokenizer.patch_size": 8, "tokenizer.stride": 4, "tokenizer.block_channels": (32, 64, 64), "tokenizer.layers_per_block": 1}
    config = apply(Config(), settings)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.tokenizer, SIZE, {}).eval().requires_grad_(False)
    count = 64 if quick else 128
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs(root / "data", count)
        data = DataConfig(source="folder", path=str(root / "data"), image_size=SIZE)
        files, pixels = open_images(data, "train"), open_images(data, "train", root / "cache")

        def encoded(images: np.ndarray) -> torch.Tensor:
            return tokenizer.encode(to_tensor(images))[0]

        with write_shard(root / "latents.npy", (count, tokenizer.tokens, tokenizer.latent_dim), STORED) as shard:
            for start in range(0, count, BATCH):
                shard.append(encoded(pixels.batch(np.arange(start, start + BATCH))).numpy())
        latents = ShardedArray([open_array(root / "latents.npy")])
        order = np.random.default_rng(1).permutation(count)
        batches = [order[start : start + BATCH] for start in range(0, count, BATCH)]
        found: dict[str, torch.Tensor] = {}
        ways = {
            "stored latents": lambda: found.update(stored=torch.cat([torch.from_numpy(latents[batch]).float() for batch in batches])),
            "cached pixels, encoded": lambda: found.update(pixels=torch.cat([encoded(pixels.batch(batch)) for batch in batches])),
            "files, decoded and encoded": lambda: found.update(files=torch.cat([encoded(files.batch(batch)) for batch in batches])),
        }
        times = alternate(ways, 1 if quick else 5, warmup=0 if quick else 1)
        scale = float(found["files"].std())
        for name, key in (("files, decoded and encoded", "files"), ("cached pixels, encoded", "pixels")):
            checks = {"largest difference over deviation": float((found["stored"] - found[key]).abs().max()) / scale}
            yield compare(f"{count} images of {SIZE} px", "stored latents", name, times, checks=checks)


if __name__ == "__main__":
    main(run, NAME)
