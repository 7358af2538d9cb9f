"""How well an SAE fits: FVU, L0, dead and dense latents, accumulated over any number of batches of tokens."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

DENSE = 0.1  # a latent active on more than this share of the tokens is dense


class Scores(NamedTuple):
    """`fvu` = sum |x - xhat|^2 / sum |x - mean|^2; `l0` active latents a token; fractions of all latents."""

    fvu: float
    l0: float
    dead_fraction: float
    dense_fraction: float


class Quality:
    """Running sums over an evaluated set of tokens, in float64.

    The sums are taken about `offset` [d_in], any fixed vector near the mean: activations whose mean is large against
    their spread would cancel otherwise. The tensors in `state` are all there is: a checkpoint keeps just them.
    """

    def __init__(self, offset: Float[Tensor, " d_in"], d_sae: int):
        self.offset = offset.double()
        zeros = torch.zeros((), dtype=torch.float64, device=offset.device)
        self.state = {
            "tokens": zeros.clone(),
            "residual": zeros.clone(),
            "squares": zeros.clone(),
            "sum": torch.zeros_like(self.offset),
            "firings": torch.zeros(d_sae, dtype=torch.float64, device=offset.device),
        }

    def update(
        self,
        tokens: Float[Tensor, "token d_in"],
        reconstruction: Float[Tensor, "token d_in"],
        firings: Float[Tensor, " d_sae"],
    ):
        """Add a batch; `firings` counts, for each latent, the tokens of the batch on which it is active."""
        shifted = tokens.double() - self.offset
        self.state["tokens"] += tokens.shape[0]
        self.state["residual"] += (tokens - reconstruction).double().square().sum()
        self.state["squares"] += shifted.square().sum()
        self.state["sum"] += shifted.sum(0)
        self.state["firings"] += firings

    def scores(self) -> Scores:
        """The scores over all tokens so far. Tokens that are all the same have no variance: FVU is then NaN."""
        tokens, firings = self.state["tokens"], self.state["firings"]
        variance = self.state["squares"] - self.state["sum"].square().sum() / tokens
        return Scores(
            fvu=float(self.state["residual"] / variance) if variance > 0 else math.nan,
            l0=float(firings.sum() / tokens),
            dead_fraction=float((firings == 0).double().mean()),
            dense_fraction=float((firings > DENSE * tokens).double().mean()),
        )
