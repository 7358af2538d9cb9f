"""The k largest of the encoder's products, by way of bfloat16 on a CPU that multiplies it faster than float32.

The product in bfloat16 only rules out latents: an entry whose upper bound is below what k others reach at least cannot
be among the k largest. The few that are left are worked out in float32, so that the result is that of a float32 product.
"""

import functools
from typing import NamedTuple, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from plumbing.compiled import compiled
from plumbing.threads import share_out
from topk import CHUNK, MOST_COUNTED, chunk_maxima, kth_largest, largest, linear, put_in_order, reaching

BLOCK_TOKENS = 4096  # tokens whose dense pre-activations are held at a time: 100 MB at d_sae 6,144
SCREENED_TOKENS = 1024  # the same, of products in bfloat16: 13 MB

MOST_LEFT = 16  # times k: with more entries left than this, a token takes the float32 product

ROUNDING = 1.01 * 2.0**-8  # of a sum to bfloat16


def largest_products(
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_sae"],
    k: int,
) -> tuple[Float[torch.Tensor, "token k"], Int[torch.Tensor, "token k"]]:
    """`largest` of x @ rows.T + bias, without gradients, some tokens at a time."""
    if x.is_cpu and x.dtype == torch.float32 and k <= MOST_COUNTED and screening_pays(*rows.shape, k):
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
    by_row = [matrix.detach(), found.rows.view(torch.int16), found.norms, found.lost]
    share_out(_round, *(part.numpy() for part in by_row), height=256)
    return found


def highest_of_chunks(numbers: Float[torch.Tensor, " latent"]) -> Float[torch.Tensor, " chunk"]:
    """The highest of each chunk of numbers, none of which is negative."""
    return F.pad(numbers, (0, -len(numbers) % CHUNK)).view(-1, CHUNK).amax(1)


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
    equal), with fewer than k positive ones, or with products that may not be finite take the float32 product.
    """
    tokens = rounded(x, torch.empty_like(x, dtype=torch.bfloat16))
    latents = rounded(rows, room("rows", *rows.shape))
    x_norms, norms = tokens.norms + tokens.lost, 1.01 * latents.norms
    lost = 1.01 * (latents.lost + x.shape[1] * 2.0**-23 * latents.norms)
    offs = [norms, lost, (ROUNDING + 2.0**-22) * bias.abs()]
    by_latent = (torch.stack(offs), torch.stack([*map(highest_of_chunks, offs)]), bias, rows)
    shared = tuple(t.detach().numpy() for t in by_latent)
    values, found = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    n_left = torch.empty(len(x), dtype=torch.int64)
    buffer = room("products", SCREENED_TOKENS, len(rows))
    by_token = (tokens.rows, x, x_norms, tokens.lost, values, found, n_left)
    for low, *block in zip(*(t.split(SCREENED_TOKENS) for t in by_token), strict=True):
        products = torch.mm(low, latents.rows.T, out=buffer[: len(low)]).view(torch.int16)
        arrays = [t.detach().numpy() for t in (products, *block)]
        share_out(_largest_screened, *arrays, shared=shared, height=16)
    finite = x_norms * norms.max() + bias.abs().max() < 1e38
    rest = ((n_left < k) | (n_left > MOST_LEFT * k) | ~finite).nonzero()[:, 0]
    if len(rest):
        values[rest], found[rest] = largest(linear(x[rest], rows, bias), k)
    return values, found


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
def _largest_screened(products, x, x_norms, x_lost, values, latents, n_left, offs, chunk_offs, bias, rows):
    """The k largest entries of each token, of those that its products in bfloat16 do not rule out."""
    (d_sae, k), n_chunks = (products.shape[1], latents.shape[1]), chunk_offs.shape[1]
    entries, highest = np.empty(d_sae, np.float32), np.empty(n_chunks, np.float32)
    off, floors = np.empty(n_chunks, np.float32), np.empty(n_chunks, np.float32)
    left, numbers = np.empty(MOST_LEFT * k, np.int64), np.empty((3, MOST_LEFT * k), np.float32)
    for token in range(products.shape[0]):
        x_norm, lost = x_norms[token], x_lost[token]
        for j in range(d_sae):
            entries[j] = np.int32(np.int32(products[token, j]) << 16).view(np.float32) + bias[j]
        chunk_maxima(entries.view(np.int32), highest.view(np.int32))
        for i in range(n_chunks):
            off[i] = _off(highest[i], x_norm, lost, chunk_offs, i)
        for i in range(n_chunks):
            floors[i] = highest[i] - off[i]
        reached = _reached(floors, k)
        for i in range(n_chunks):
            floors[i] = reached - off[i]
        n = reaching(entries, highest, floors, left)
        if k <= n <= len(left):
            for i in range(n):
                numbers[0, i] = entries[left[i]]
                numbers[1, i] = _off(numbers[0, i], x_norm, lost, offs, left[i])
            n = _largest_of(left[:n], numbers[:, :n], x[token], rows, bias, values[token], latents[token])
        n_left[token] = n


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _off(entry, x_norm, x_lost, offs, i):
    """The most by which an entry differs from that of the float32 product.

    Where a chunk's highest stands for a negative entry, that one's rounding is left out, which is below 1 % of the rest
    if its upper bound is positive: norms and lost have 1 % added.
    """
    return x_lost * offs[0, i] + x_norm * offs[1, i] + offs[2, i] + np.float32(ROUNDING) * abs(entry)


@compiled()
@no_type_check
def _reached(numbers, k):
    """What k of some numbers reach; 0 where fewer than k are positive."""
    return np.int32(max(kth_largest(numbers.view(np.int32), k), np.int32(0))).view(np.float32)


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _largest_of(columns, numbers, x, rows, bias, values, latents):
    """The k largest entries of one token among some columns, of which the entries and how far these are off are given.

    Those that are surely among the largest are worked out in float32 first, then those that may still be; `columns` and
    `numbers` change. Returns how many there were: fewer than k leave `values` and `latents` as they are.
    """
    entries, off, acts, k = numbers[0], numbers[1], numbers[2], len(values)
    for i in range(len(columns)):
        acts[i] = entries[i] - off[i]
    reached, n_sure = _reached(acts, k), 0
    for i in range(len(columns)):
        if acts[i] >= reached:
            columns[i], columns[n_sure] = columns[n_sure], columns[i]
            entries[i], off[i] = entries[n_sure], off[n_sure]
            n_sure += 1
    _pre_acts(columns[:n_sure], x, rows, bias, acts)
    reached, n = _reached(acts[:n_sure], k), n_sure
    for i in range(n_sure, len(columns)):
        if entries[i] + off[i] >= reached:
            columns[n] = columns[i]
            n += 1
    _pre_acts(columns[n_sure:n], x, rows, bias, acts[n_sure:])
    if n >= k:
        put_in_order(acts[:n].view(np.int32), columns, values.view(np.int32), latents)
    return n


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _pre_acts(columns, x, rows, bias, acts):
    """Some columns' entries of one token in float32, 0 where negative; four rows at a time, to wait less for memory."""
    n = len(columns)
    for i in range(0, n, 4):
        one, two, three = min(i + 1, n - 1), min(i + 2, n - 1), min(i + 3, n - 1)
        a, b, c, d = rows[columns[i]], rows[columns[one]], rows[columns[two]], rows[columns[three]]
        at_a, at_b, at_c, at_d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(x.shape[0]):
            at_a += x[j] * a[j]
            at_b += x[j] * b[j]
            at_c += x[j] * c[j]
            at_d += x[j] * d[j]
        acts[i], acts[one], acts[two], acts[three] = at_a, at_b, at_c, at_d
    for i in range(n):
        act = acts[i] + bias[columns[i]]
        acts[i] = act if act > 0 else np.float32(0)
