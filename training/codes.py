"""From a batch of tokens to what is recorded of it: sparse codes, pooled to rows, and the scores' sums."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoders.wrapper import Activations
from plumbing.threads import float32_products
from sae import TopKSAE
from saelens import SAE
from training.quality import Quality

Result = TypeVar("Result")


def in_halves(compute: Callable[[Tensor], Result], tokens: Tensor) -> list[Result]:
    """[compute(tokens)]; of their halves, quarters, … in order, where the GPU's memory is too small."""
    try:
        return [compute(tokens)]
    except torch.cuda.OutOfMemoryError:
        if len(tokens) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(tokens) // 2
    return in_halves(compute, tokens[:half]) + in_halves(compute, tokens[half:])


@float32_products("high")
@torch.no_grad()
def codes(tokens: Float[Tensor, "token d_in"], sae: SAE, activation: str) -> scipy.sparse.csr_array:
    """The code of each token, CSR float32 [token, d_sae]; with "relu", its ReLU code."""
    if activation == "relu":
        return scipy.sparse.csr_array(sae.pre_acts(tokens).relu().cpu().numpy())
    if not isinstance(sae, TopKSAE):
        return scipy.sparse.csr_array(sae.encode(tokens).cpu().numpy())
    values, latents = (part.cpu().numpy() for part in sae.encode_topk(tokens))
    ends = np.arange(0, values.size + 1, sae.k)
    found = scipy.sparse.csr_array((values.ravel(), latents.ravel(), ends), shape=(len(tokens), sae.d_sae))
    found.eliminate_zeros()
    return found


class Pooling:
    """From tokens' codes to rows' features: the weighted mean of the codes of each row's recorded tokens."""

    def __init__(self, batch: Activations):
        self.chosen, items, weights = batch.recorded_tokens()
        self.is_recorded = torch.zeros(batch.mask.shape, dtype=torch.bool, device=batch.mask.device)
        self.is_recorded.view(-1)[self.chosen] = True
        place = {row: number for number, row in enumerate(dict.fromkeys(batch.rows))}
        row_of_item = np.array([place[row] for row in batch.rows])
        n_items, rows = np.bincount(row_of_item).astype(np.float32), row_of_item[items]
        shares = weights / n_items[rows]
        columns = np.arange(len(rows))
        self.mean = scipy.sparse.csr_array((shares, (rows, columns)), shape=(len(place), len(rows)))

    def features(self, batch: Activations, layer: int, sae: SAE, activation: str) -> scipy.sparse.csr_array:
        """The features of a batch's rows, CSR float32 [row, d_sae]."""
        found = in_halves(lambda chosen: codes(batch.flat(layer, chosen), sae, activation), self.chosen)
        return scipy.sparse.csr_array(self.mean @ scipy.sparse.vstack(found, format="csr"))


def evaluate(
    quality: Quality,
    sae: SAE,
    batch: Activations,
    layer: int,
    chosen: Int[Tensor, " chosen"],
    recorded: Bool[Tensor, " token"],
    activation: str,
):
    """Add the chosen tokens to an SAE's scores: the error of its own code, and the firings of the recorded code."""

    @float32_products("high")
    @torch.no_grad()
    def add(chosen: Int[Tensor, " chosen"]):
        tokens = batch.flat(layer, chosen)
        pre_acts = sae.pre_acts(tokens)
        feature_acts = sae.code(pre_acts)
        firings = ((pre_acts if activation == "relu" else feature_acts) > 0).sum(0).double()
        quality.update(tokens, sae.reconstruct(tokens, feature_acts), firings, recorded[chosen])

    in_halves(add, chosen)
