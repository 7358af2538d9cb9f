"""How well an SAE fits: FVU, L0, dead and dense latents, accumulated over any number of batches of tokens."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DENSE = 0.1  # a latent that is active on more than this share of the tokens is dense

FEW = 0.1  # where a smaller share of the tokens than this holds half of the variance, FVU is about these few alone

# The histogram of the tokens' squared distances from the mean, from 2^-128 to 2^128:
BINS, BINS_PER_OCTAVE = 1024, 4


class Scores(NamedTuple):
    """`fvu` = sum |x - xhat|^2 / sum |x - mean|^2; `l0` active latents a token; fractions of all latents.

    `fvu_recorded` is the FVU of the recorded tokens alone, about their own mean; `half_variance_tokens` is the
    smallest share of the tokens that holds half of sum |x - mean|^2, to a factor of 2^(1/4).
    """

    fvu: float
    fvu_recorded: float
    l0: float
    dead_fraction: float
    dense_fraction: float
    half_variance_tokens: float


class Quality:
    """Running float64 sums over the evaluated tokens: of all tokens [0], and of the recorded ones [1].

    Sums are taken about `offset` [d_in], any fixed vector near the mean: where the mean is much larger than the
    spread, sums about zero would lose digits. The tensors of `state` are all that a checkpoint holds. Those named in
    `SUMS` add up over processes; `center`, the mean of the first batch, is each process's own.
    """

    SUMS = ("tokens", "residual", "squares", "sum", "firings", "histogram")

    def __init__(self, offset: Float[Tensor, " d_in"], d_sae: int):
        self.offset = offset.double()
        zeros = torch.zeros(2, dtype=torch.float64, device=offset.device)
        self.state = {
            "tokens": zeros.clone(),
            "residual": zeros.clone(),
            "squares": zeros.clone(),
            "sum": zeros.new_zeros(2, len(offset)),
            "firings": zeros.new_zeros(d_sae),
            "histogram": zeros.new_zeros(
                2, BINS
            ),  # tokens, and the sum of their squared distances from `center`
            "center": torch.zeros_like(self.offset),
        }

    def update(
        self,
        tokens: Float[Tensor, "token d_in"],
        reconstruction: Float[Tensor, "token d_in"],
        firings: Float[Tensor, " d_sae"],
        recorded: Bool[Tensor, " token"],
    ):
        """Add a batch; `firings` counts each latent's active tokens. Where memory runs out, nothing is added."""
        x = tokens.double()
        # `where`, since an `if` would wait for the GPU
        begun = self.state["tokens"][0] > 0
        self.state["center"] = torch.where(begun, self.state["center"], x.mean(0))
        parts = torch.stack([torch.ones_like(recorded), recorded]).double()
        shifted = x - self.offset
        found = {
            "tokens": parts.sum(1),
            "residual": parts @ (tokens - reconstruction).double().square().sum(1),
            "squares": parts @ shifted.square().sum(1),
            "sum": parts @ shifted,
            "firings": firings,
            "histogram": histogram((x - self.state["center"]).square().sum(1)),
        }
        for name, value in found.items():
            self.state[name] += value

    def scores(self) -> Scores:
        """The scores of all tokens so far; FVU is NaN where they are all the same."""
        tokens, firings = self.state["tokens"], self.state["firings"]
        variance = self.state["squares"] - self.state["sum"].square().sum(1) / tokens
        fvu, fvu_recorded = torch.where(variance > 0, self.state["residual"] / variance, math.nan).tolist()
        return Scores(
            fvu=fvu,
            fvu_recorded=fvu_recorded,
            l0=float(firings.sum() / tokens[0]),
            dead_fraction=float((firings == 0).double().mean()),
            dense_fraction=float((firings > DENSE * tokens[0]).double().mean()),
            half_variance_tokens=share_holding_half(*self.state["histogram"]),
        )


def finite(number: float) -> float | None:
    """A number for JSON, which has no NaN: None in its place."""
    return number if math.isfinite(number) else None


def histogram(distances: Float[Tensor, " token"]) -> Float[Tensor, "2 bin"]:
    """The number of tokens, and the sum of their squared distances, in each bin of the distance."""
    octaves = distances.clamp_min(torch.finfo(torch.float64).tiny).log2() + 128
    bins = (BINS_PER_OCTAVE * octaves).long().clamp(0, BINS - 1)
    both = torch.stack([torch.ones_like(distances), distances])
    return distances.new_zeros(2, BINS).index_add_(1, bins, both)


def share_holding_half(tokens: Float[Tensor, " bin"], variance: Float[Tensor, " bin"]) -> float:
    """The smallest share of the tokens that holds half of the variance; tokens of one bin count as equally far."""
    tokens, variance = tokens.flip(0), variance.flip(0)
    held, total = variance.cumsum(0), variance.sum()
    if not total > 0:
        return math.nan
    last = int((held < total / 2).sum())
    within = (total / 2 - (held[last] - variance[last])) / variance[last]
    return float((tokens[:last].sum() + within * tokens[last]) / tokens.sum())
