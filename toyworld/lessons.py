"""What all of the demo's encoders are trained with: the scenes, the sizes and one loop."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from plumbing.progress import Progress
from toyworld import scenes, things

WIDTH, BLOCKS, HEADS, PATCH = 96, 3, 3, 8
CONTEXT = 24  # tokens; the longest caption has 20 and two special ones
MEAN, STD = 0.45, 0.2  # of a pixel in 0..1, the same in all three channels


class Recipe(NamedTuple):
    """How long an encoder trains; `rate` is AdamW's highest learning rate."""

    steps: int
    batch: int
    rate: float


class Training:
    """The training scenes: `pixels` [scene, 32, 32, 3], `shapes` [scene, 6], `captions` [scene][5]."""

    def __init__(self, n_scenes: int):
        seed = scenes.TRAINING_SEED
        rows = Progress(range(n_scenes), "training scenes")
        self.pixels = torch.from_numpy(np.stack([scenes.pixels(row, seed) for row in rows]))
        self.shapes = torch.tensor([shapes_of(row, seed) for row in range(n_scenes)])
        self.captions = [scenes.captions(row, seed) for row in range(n_scenes)]

    def pick(self, batch: int) -> Int[Tensor, " batch"]:
        """Indices of a random batch."""
        return torch.randint(len(self.pixels), (batch,))

    def images(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 32 32"]:
        """Normalised pictures."""
        return (self.pixels[index].permute(0, 3, 1, 2).float() / 255 - MEAN) / STD

    def tokens(
        self, index: Int[Tensor, " batch"], tokenizer: PreTrainedTokenizerFast
    ) -> Int[Tensor, "batch token"]:
        """One of the captions of each picture as token ids padded with 0."""
        texts = [self.captions[row][torch.randint(5, ()).item()] for row in index.tolist()]
        return tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids


def shapes_of(row: int, seed: int) -> list[float]:
    """1 for each of the six shapes that a scene shows, else 0."""
    shown = {thing.shape for thing in scenes.scene(row, seed).things}
    return [float(shape in shown) for shape in things.SHAPES]


def fit(
    name: str,
    parameters: Iterable[nn.Parameter],
    recipe: Recipe,
    loss_of_batch: Callable[[], Tensor],
    after_step: Callable[[float], None] | None = None,
):
    """AdamW with a tenth of warm-up and a cosine decay; `after_step(fraction done)` runs after each step."""
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.05, betas=(0.9, 0.98))
    warm_up = max(recipe.steps // 10, 1)
    progress = Progress(range(recipe.steps), name)
    for step in progress:
        decay = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        optimizer.param_groups[0]["lr"] = recipe.rate * min((step + 1) / warm_up, decay)
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        if after_step is not None:
            after_step(step / recipe.steps)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
