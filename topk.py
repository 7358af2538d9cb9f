"""The k largest pre-activations of each token: a dense product, and a selection.

On a CPU that multiplies bfloat16 faster, the product is made in bfloat16, only to rule out latents: an entry whose upper
bound is below what k others reach at least cannot be among the k largest. The few that are left are worked out in
float32, so that the result is that of a float32 product.
"""

import functools
from typing import NamedTuple, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from plumbing.compiled import compiled, prefetch
from plumbing.threads import share_out

MOST_INSERTED = 256  # beyond this k, sorting is quicker than insertion

CHUNK = 32  # entries of which the highest is looked at first

BLOCK_TOKENS = 4096  # tokens whose dense pre-activations are held at a time: 100 MB at d_sae 6,144
SCREENED_TOKENS = 1024  # the same, of products in bfloat16: 13 MB

MOST_LEFT = 8  # times k: with more entries left than this, a token takes the float32 product


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
    if pre_acts.is_cpu and pre_acts.dtype == torch.float32 and k <= MOST_INSERTED:
        latents = torch.empty(*pre_acts.shape[:-1], k, dtype=torch.int64)
        bits = pre_acts.detach().contiguous().view(torch.int32)
        share_out(_largest_by_insertion, bits.view(-1, bits.shape[-1]).numpy(), latents.view(-1, k).numpy())
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


def largest_products(
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_sae"],
    k: int,
) -> tuple[Float[torch.Tensor, "token k"], Int[torch.Tensor, "token k"]]:
    """`largest` of x @ rows.T + bias, without gradients, some tokens at a time."""
    if x.is_cpu and x.dtype == torch.float32 and k <= MOST_INSERTED and screening_pays(*rows.shape, k):
        return screened(x, rows, bias, k)
    products = (linear(block, rows, bias) for block in x.split(BLOCK_TOKENS))
    codes = [largest(block.float() if block.dtype == torch.bfloat16 else block, k) for block in products]
    return torch.cat([values for values, _ in codes]), torch.cat([latents for _, latents in codes])


@functools.cache
def screening_pays(d_sae: int, d_in: int, k: int) -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, and the matrix is large enough for it to matter."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and d_sae >= 64 * k and d_in >= 256


class Rounded(NamedTuple):
    """A matrix in bfloat16, the norm of each row as it was, and the norm of what rounding has taken from it."""

    rows: Float[torch.Tensor, "row d_in"]
    norms: Float[torch.Tensor, " row"]
    lost: Float[torch.Tensor, " row"]


@functools.lru_cache(maxsize=4)
def room(purpose: str, n_rows: int, width: int) -> Float[torch.Tensor, "row width"]:
    """Room for numbers in bfloat16 that the next call for this purpose uses again: new memory takes milliseconds."""
    return torch.empty(n_rows, width, dtype=torch.bfloat16)


def rounded(matrix: Float[torch.Tensor, "row d_in"], rows: Float[torch.Tensor, "row d_in"]) -> Rounded:
    """Round to bfloat16, to the nearest and at a tie to the even one; `rows` is room for the result."""
    found = Rounded(rows, *torch.empty(2, len(matrix)))
    share_out(
        _round, matrix.detach().numpy(), found.rows.view(torch.int16).numpy(), *map(np.asarray, found[1:])
    )
    return found


@torch.no_grad()
def screened(
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_sae"],
    k: int,
) -> tuple[Float[torch.Tensor, "token k"], Int[torch.Tensor, "token k"]]:
    """`largest_products` by way of bfloat16.

    With x', w' rounded, |x w - x' w'| <= |x - x'| |w| + |x'| |w - w'| (Cauchy-Schwarz). Summing d_in products in float32
    adds at most d_in 2^-24 |x'| |w'|, and rounding the sum 2^-8 of it. Tokens with too many entries left (most are
    equal, or one is not finite), or with fewer than k positive ones, take the float32 product.
    """
    tokens = rounded(x, torch.empty_like(x, dtype=torch.bfloat16))
    latents = rounded(rows, room("rows", *rows.shape))
    lost = 1.01 * (latents.lost + x.shape[1] * 2.0**-23 * latents.norms)
    by_latent = [t.detach().numpy() for t in (1.01 * latents.norms, lost, bias, rows)]
    values, found = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    n_left = torch.empty(len(x), dtype=torch.int64)
    buffer = room("products", SCREENED_TOKENS, len(rows))
    by_token = (x, tokens.norms + tokens.lost, tokens.lost, values, found, n_left)
    blocks = zip(*(t.split(SCREENED_TOKENS) for t in (tokens.rows, *by_token)), strict=True)
    for low, *block in blocks:
        products = torch.mm(low, latents.rows.T, out=buffer[: len(low)]).view(torch.int16)
        arrays = [t.detach().numpy() for t in (products, *block)]
        share_out(_largest_screened, *arrays, shared=tuple(by_latent), height=16)
    rest = ((n_left < k) | (n_left > MOST_LEFT * k)).nonzero()[:, 0]
    if len(rest):
        values[rest], found[rest] = largest(linear(x[rest], rows, bias), k)
    return values, found


@compiled()
@no_type_check
def _largest_by_insertion(bits, latents):
    """The columns of the k largest entries of each row, in descending order, by insertion into a list of k.

    A float's bits are compared as an integer: that keeps the order of positive floats, orders NaN too, and lets the
    compiler vectorise the maximum of a chunk. Entries that are lower than what k chunks reach are skipped.
    """
    k = latents.shape[1]
    top, highest = np.empty(k, np.int64), np.empty(-(-bits.shape[1] // CHUNK), np.int32)
    for token in range(bits.shape[0]):
        row, found = bits[token], latents[token]
        _chunk_maxima(row, highest)
        top[:] = _kth_largest(highest, top) - 1
        for chunk in range(len(highest)):
            if highest[chunk] > top[k - 1]:
                for column in range(CHUNK * chunk, min(CHUNK * (chunk + 1), len(row))):
                    if row[column] > top[k - 1]:
                        _insert(top, found, row[column], column)


@compiled()
@no_type_check
def _chunk_maxima(row, highest):
    """The largest entry of each chunk."""
    for i in range(len(highest)):
        chunk = row[CHUNK * i : CHUNK * (i + 1)]
        top = chunk[0]
        for column in range(chunk.shape[0]):
            top = max(top, chunk[column])
        highest[i] = top


@compiled()
@no_type_check
def _kth_largest(numbers, top):
    """The k-th largest of some 32-bit integers, or what is below all where there are fewer; `top` is room for k."""
    k = len(top)
    top[:] = -(2**31) - 1
    for number in numbers:
        if number > top[k - 1]:
            _insert(top, top, number, number)
    return top[k - 1]


@compiled()
@no_type_check
def _insert(top, found, number, column):
    """Put a number into a descending list, behind its equals, and its column into the list of columns."""
    place = len(top) - 1
    while place > 0 and number > top[place - 1]:
        top[place], found[place] = top[place - 1], found[place - 1]
        place -= 1
    top[place], found[place] = number, column


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _round(matrix, rounded, norms, lost):
    """`rounded` on bits: a bfloat16 is the upper half of a float32's."""
    back = np.empty(matrix.shape[1], np.float32)
    back_bits = back.view(np.int32)
    for i in range(matrix.shape[0]):
        row, bits, square, rest = matrix[i], matrix[i].view(np.int32), np.float32(0), np.float32(0)
        for j in range(row.shape[0]):
            upper = (bits[j] + np.int32(0x7FFF) + ((bits[j] >> 16) & np.int32(1))) >> 16
            rounded[i, j], back_bits[j] = np.int16(upper), np.int32(upper << 16)
        for j in range(row.shape[0]):
            square += row[j] * row[j]
            rest += (row[j] - back[j]) * (row[j] - back[j])
        norms[i], lost[i] = np.sqrt(square), np.sqrt(rest)


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _largest_screened(products, x, x_norms, x_lost, values, latents, n_left, norms, lost, bias, rows):
    """The k largest entries of each token, of those that its products in bfloat16 do not rule out."""
    d_sae, k = products.shape[1], latents.shape[1]
    low, margin, high = np.empty(d_sae, np.float32), np.empty(d_sae, np.float32), np.empty(d_sae, np.float32)
    top, highest = np.empty(k, np.int64), np.empty(-(-d_sae // CHUNK), np.int32)
    left = np.empty(MOST_LEFT * k, np.int64)
    for token in range(products.shape[0]):
        _bounds(products[token], x_norms[token], x_lost[token], norms, lost, bias, low, margin, high)
        _chunk_maxima(low.view(np.int32), highest)
        reached = max(_kth_largest(highest, top), 0)
        n_left[token] = _at_least(high.view(np.int32), reached, highest, left)
        if k <= n_left[token] <= len(left):
            columns = left[: n_left[token]]
            _put_first(columns, low.view(np.int32), reached)
            _largest_of(columns, high, x[token], rows, bias, values[token], latents[token])


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _bounds(products, x_norm, x_lost, norms, lost, bias, low, margin, high):
    """What each entry is at least and at most. (One output a loop: with more, the compiler does not vectorise.)"""
    bits, rounding, addition = high.view(np.int32), np.float32(1.01 * 2.0**-8), np.float32(2.0**-22)
    for j in range(len(products)):
        bits[j] = np.int32(products[j]) << 16
    for j in range(len(low)):
        margin[j] = x_lost * norms[j] + x_norm * lost[j] + rounding * abs(high[j]) + addition * abs(bias[j])
    for j in range(len(low)):
        low[j] = high[j] + bias[j] - margin[j]
    for j in range(len(low)):
        high[j] = low[j] + np.float32(2) * margin[j]


@compiled()
@no_type_check
def _at_least(bits, reached, highest, left):
    """How many entries reach a number; `left` gets the columns of as many of them as it has room for."""
    n_left = 0
    _chunk_maxima(bits, highest)
    for chunk in range(len(highest)):
        if highest[chunk] >= reached:
            for column in range(CHUNK * chunk, min(CHUNK * (chunk + 1), len(bits))):
                if bits[column] >= reached:
                    if n_left < len(left):
                        left[n_left] = column
                    n_left += 1
    return n_left


@compiled()
@no_type_check
def _put_first(columns, bits, reached):
    """Put the columns whose entries reach a number before the others, in place."""
    n_first = 0
    for i in range(len(columns)):
        column = columns[i]
        if bits[column] >= reached:
            columns[i], columns[n_first] = columns[n_first], column
            n_first += 1


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _largest_of(columns, high, x, rows, bias, values, latents):
    """The k largest entries of one token among some columns, worked out in float32 where `high` allows them a place.

    The row after next is fetched ahead.
    """
    values[:] = -np.inf
    for i in range(len(columns)):
        if i + 2 < len(columns) and high[columns[i + 2]] > values[-1]:
            later = rows[columns[i + 2]]
            for j in range(0, x.shape[0], 16):
                prefetch(later, j)
        if high[columns[i]] > values[-1]:
            row, total = rows[columns[i]], bias[columns[i]]
            for j in range(x.shape[0]):
                total += x[j] * row[j]
            if total > values[-1]:
                _insert(values, latents, total, columns[i])
    for i in range(len(values)):
        values[i] = max(values[i], np.float32(0))
