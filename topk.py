"""The k largest pre-activations of each token."""

from typing import no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from plumbing.compiled import compiled
from plumbing.threads import share_out

MOST_COUNTED = 256  # beyond this k, sorting is quicker than counting, for each entry, those above it

CHUNK = 32  # entries of which the highest is looked at first

LOWEST = -(2**31)  # of 32-bit integers


def linear(
    x: Float[torch.Tensor, "*token d_in"],
    rows: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_sae"],
) -> Float[torch.Tensor, "*token d_sae"]:
    """x @ rows.T + bias; on the CPU, and without gradients, by oneDNN, which can take a third less time."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn and x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled():
        return onednn(x, rows, bias, "none", [], "")
    return F.linear(x, rows, bias)


def largest(
    pre_acts: Float[torch.Tensor, "*token d_sae"], k: int
) -> tuple[Float[torch.Tensor, "*token k"], Int[torch.Tensor, "*token k"]]:
    """The k largest entries of each row and their columns; entries that are not positive are returned as 0.

    On the CPU, for k of at most 256, equal entries are taken in the order of their columns.
    """
    if pre_acts.is_cpu and pre_acts.dtype == torch.float32 and k <= MOST_COUNTED:
        latents = torch.empty(*pre_acts.shape[:-1], k, dtype=torch.int64)
        bits = pre_acts.detach().contiguous().view(torch.int32)
        share_out(_largest_by_counting, bits.view(-1, bits.shape[-1]).numpy(), latents.view(-1, k).numpy())
    else:
        latents = pre_acts.detach().topk(k, dim=-1, sorted=False).indices
    return pre_acts.gather(-1, latents).relu(), latents


def keep_largest(
    pre_acts: Float[torch.Tensor, "*token d_sae"], k: int
) -> Float[torch.Tensor, "*token d_sae"]:
    """The rows with all entries set to 0 but the k largest positive ones."""
    if k >= pre_acts.shape[-1]:
        return pre_acts.relu()
    values, latents = largest(pre_acts, k)
    return torch.zeros_like(pre_acts).scatter(-1, latents, values)


@compiled()
@no_type_check
def _largest_by_counting(bits, latents):
    """The columns of the k largest entries of each row, in descending order, equal ones in the order of columns.

    A float's bits are compared as an integer: that keeps the order of positive floats, orders NaN too, and lets the
    compiler vectorise. Entries that are lower than what k chunks reach are skipped.
    """
    (d_sae, k), n_chunks = (bits.shape[1], latents.shape[1]), -(-bits.shape[1] // CHUNK)
    highest, floors = np.empty(n_chunks, np.int32), np.empty(n_chunks, np.int32)
    columns, entries, top = np.empty(d_sae, np.int64), np.empty(d_sae, np.int32), np.empty(k, np.int32)
    for token in range(bits.shape[0]):
        row = bits[token]
        chunk_maxima(row, highest)
        reached = kth_largest(highest, k)
        floors[:] = reached if reached > 0 else LOWEST  # of entries that are not positive, any will do
        n = reaching(row, highest, floors, columns)
        for i in range(n):
            entries[i] = row[columns[i]]
        put_in_order(entries[:n], columns, top, latents[token])


@compiled()
@no_type_check
def chunk_maxima(row, highest):
    """The largest entry of each chunk, or 0 where none is positive."""
    for i in range(len(highest)):
        chunk, top = row[CHUNK * i : CHUNK * (i + 1)], np.int32(0)
        for column in range(chunk.shape[0]):
            top = max(top, chunk[column])
        highest[i] = top


@compiled()
@no_type_check
def kth_largest(numbers, k):
    """The k-th largest of some 32-bit integers, or the lowest of all where there are fewer, by bisection."""
    low, high = np.int64(LOWEST), np.int64(2**31)
    while high - low > 1:
        middle, n_reach = (low + high) >> 1, np.int32(0)
        for i in range(len(numbers)):
            n_reach += np.int32(numbers[i] >= np.int32(middle))
        if n_reach >= k:
            low = middle
        else:
            high = middle
    return np.int32(low)


@compiled()
@no_type_check
def reaching(entries, highest, floors, columns):
    """How many entries reach the floor of their chunk; `columns` gets as many of them as it has room for."""
    n = 0
    for chunk in range(len(highest)):
        floor = floors[chunk]
        if highest[chunk] >= floor:
            for column in range(CHUNK * chunk, min(CHUNK * (chunk + 1), len(entries))):
                if entries[column] >= floor:
                    if n < len(columns):
                        columns[n] = column
                    n += 1
    return n


@compiled()
@no_type_check
def put_in_order(entries, columns, top, latents):
    """The k largest of some 32-bit integers and their columns, in descending order, equal ones as they come.

    The place of each of the k is the number of those above it, which takes no branch that a processor has to guess.
    """
    k, kth, n_above, n_chosen = len(top), kth_largest(entries, len(top)), 0, 0
    chosen, keys = np.empty(k, np.int64), np.empty(k, np.int64)
    for i in range(len(entries)):
        n_above += entries[i] > kth
    n_equal = k - n_above
    for i in range(len(entries)):
        if entries[i] > kth or (entries[i] == kth and n_equal > 0):
            n_equal -= entries[i] == kth
            chosen[n_chosen], keys[n_chosen] = i, (np.int64(entries[i]) << 32) - i  # no two keys are equal
            n_chosen += 1
    for i in range(k):
        place = np.int64(0)
        for j in range(k):
            place += np.int64(keys[j] > keys[i])
        top[place], latents[place] = entries[chosen[i]], columns[chosen[i]]
