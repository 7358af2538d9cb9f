"""The compiled arithmetic of the TopK SAE's step: sparse products, sums by latent, Adam latent by latent."""

from typing import NamedTuple, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from plumbing.compiled import compiled
from plumbing.threads import share_out


def error_and_products(
    centered: Float[torch.Tensor, "token d_in"],
    W_dec: Float[torch.Tensor, "d_sae d_in"],
    values: Float[torch.Tensor, "token k"],
    latents: Int[torch.Tensor, "token k"],
) -> tuple[Float[torch.Tensor, "token d_in"], Float[torch.Tensor, "token k"]]:
    """The error of decoding a sparse code, and its dot product with the decoder row of each active latent."""
    if centered.is_cpu and centered.dtype == torch.float32:
        rest = -latents.shape[1] % 4
        error, latents, values = centered.clone(), F.pad(latents, (0, rest)), F.pad(values, (0, rest))
        products = torch.empty_like(values)
        by_token = (tensor.numpy() for tensor in (error, values, latents, products))
        share_out(_subtract_and_multiply, *by_token, shared=(W_dec.detach().numpy(),))
        return error, products[:, : products.shape[1] - rest]
    # The dot products are the gradient of the bag's weights; through autograd, fake tensors could not follow it.
    bags, starts = (
        latents.flatten(),
        torch.arange(0, latents.numel(), latents.shape[1], device=latents.device),
    )
    rows, weights = W_dec.detach(), values.flatten()
    decoded, bag_of, *_ = torch.ops.aten._embedding_bag(rows, bags, starts, False, 0, False, weights)
    error = centered - decoded
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return error, backward(error, rows, bags, starts, bag_of, 0).view_as(values)


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _subtract_and_multiply(error, values, latents, products, W_dec):
    """`error_and_products` in place; four decoder rows at a time, to wait less for memory."""
    for token in range(latents.shape[0]):
        rest, value, latent = error[token], values[token], latents[token]
        for i in range(0, latent.shape[0], 4):
            a, b, c, d = W_dec[latent[i]], W_dec[latent[i + 1]], W_dec[latent[i + 2]], W_dec[latent[i + 3]]
            for j in range(rest.shape[0]):
                rest[j] -= value[i] * a[j] + value[i + 1] * b[j] + value[i + 2] * c[j] + value[i + 3] * d[j]
        for i in range(latent.shape[0]):
            row, total = W_dec[latent[i]], np.float32(0)
            for j in range(row.shape[0]):
                total += rest[j] * row[j]
            products[token, i] = total


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _subtract_projections(gradients, rows):
    """Subtract from each gradient its projection on its row, which has unit norm."""
    for i in range(rows.shape[0]):
        gradient, row, along = gradients[i], rows[i], np.float32(0)
        for j in range(row.shape[0]):
            along += gradient[j] * row[j]
        for j in range(row.shape[0]):
            gradient[j] -= along * row[j]


class SumByLatent:
    """For each latent, sums over the tokens on which it is active: the transposed sparse code times a dense matrix.

    The pairs of token and latent are sorted by latent, and each latent's tokens are summed in their order, which
    gives the same result every time, on every device.
    """

    def __init__(self, latents: Int[torch.Tensor, "token k"], d_sae: int):
        self.n_tokens, self.d_sae, self.latents = len(latents), d_sae, latents.flatten()
        if latents.is_cpu:
            self.order, self.starts = map(torch.from_numpy, _order_by_latent(self.latents.numpy(), d_sae))
        else:
            in_order, self.order = self.latents.sort(stable=True)
            self.starts = torch.searchsorted(in_order, torch.arange(d_sae, device=latents.device))
        self.tokens = self.order // latents.shape[1]

    def __call__(
        self, weights: Float[torch.Tensor, "token k"], rows: Float[torch.Tensor, "token d_in"] | None = None
    ) -> Float[torch.Tensor, "d_sae ..."]:
        """Each latent's weighted sum of rows: [d_sae, d_in]; without rows its sum of weights: [d_sae]."""
        if rows is None and weights.is_cpu:  # where index_add_ adds in order
            return weights.new_zeros(self.d_sae).index_add_(0, self.latents, weights.flatten())
        if rows is None:
            return self(weights, weights.new_ones(self.n_tokens, 1))[:, 0]
        weights = weights.flatten()[self.order]
        return F.embedding_bag(self.tokens, rows, self.starts, per_sample_weights=weights, mode="sum")


@compiled()
@no_type_check
def _order_by_latent(latents, d_sae):
    """A stable counting sort of latents: the order, and where in it each latent begins."""
    starts, order = np.zeros(d_sae, np.int64), np.empty(len(latents), np.int64)
    for latent in latents:
        starts[latent] += 1
    end = len(latents)
    for latent in range(d_sae - 1, -1, -1):
        end -= starts[latent]
        starts[latent] = end
    places = starts.copy()
    for pair in range(len(latents)):
        order[places[latents[pair]]] = pair
        places[latents[pair]] += 1
    return order, starts


class RowGradients(NamedTuple):
    """The gradient of a matrix of latents' rows as the sums that it is made of, none of which is worked out yet.

    The row of a latent is the sum over the tokens on which it is active of weights times rows, and what is `added`.
    """

    sum_by_latent: SumByLatent
    weights: Float[torch.Tensor, "token k"]
    rows: Float[torch.Tensor, "token d_in"]
    chosen: Int[torch.Tensor, " chosen"]  # the latents to whose rows something is added
    added: Float[torch.Tensor, "chosen d_in"]

    def dense(self) -> Float[torch.Tensor, "d_sae d_in"]:
        """The gradient."""
        return self.sum_by_latent(self.weights, self.rows).index_add_(0, self.chosen, self.added)


class Rates(NamedTuple):
    """The numbers of a step of Adam (Kingma and Ba 2015, algorithm 1)."""

    step_size: np.float32  # lr / (1 - beta1^t)
    one_less_beta1: np.float32
    beta2: np.float32
    one_less_beta2: np.float32
    correction: np.float32  # (1 - beta2^t)^-1/2
    eps: np.float32

    @classmethod
    def at(cls, step: float, lr: float, betas: tuple[float, float], eps: float) -> "Rates":
        """Those of step number `step`, of which the first is 1."""
        beta1, beta2 = betas
        step_size, correction = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
        return cls(*map(np.float32, (step_size, 1 - beta1, beta2, 1 - beta2, correction, eps)))


def adam_by_latent(
    weights: Float[torch.Tensor, "d_sae d_in"],
    exp_avg: Float[torch.Tensor, "d_sae d_in"],
    exp_avg_sq: Float[torch.Tensor, "d_sae d_in"],
    gradient: RowGradients,
    rates: Rates,
    unit_norm: bool,
) -> None:
    """A step of torch.optim.Adam, in place, latent by latent; the gradient of one row at a time is worked out.

    With `unit_norm` the part of the gradient along each (unit) row is removed first, and the row scaled to unit norm
    afterwards. Float32 on the CPU.
    """
    active = gradient.sum_by_latent
    ends = torch.cat([active.starts[1:], active.starts.new_tensor([len(active.order)])])
    places = torch.full_like(active.starts, -1)
    places[gradient.chosen] = torch.arange(len(gradient.chosen))
    by_row = (active.starts, ends, places, weights, exp_avg, exp_avg_sq)
    sources = (active.tokens, gradient.weights.flatten()[active.order], gradient.rows, gradient.added)
    shared = (*(tensor.detach().numpy() for tensor in sources), rates, unit_norm)
    share_out(_adam_by_latent, *(tensor.detach().numpy() for tensor in by_row), shared=shared, height=128)


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _adam_by_latent(
    starts, ends, places, weights, exp_avg, exp_avg_sq, tokens, factors, rows, added, rates, unit_norm
):
    """`adam_by_latent` of some latents. (Fetching ahead what is read next made it slower.)"""
    gradients = np.empty((1, weights.shape[1]), np.float32)
    gradient = gradients[0]
    for i in range(weights.shape[0]):
        gradient[:] = 0
        for pair in range(starts[i], ends[i]):
            factor, row = factors[pair], rows[tokens[pair]]
            for j in range(row.shape[0]):
                gradient[j] += factor * row[j]
        if places[i] >= 0:
            row = added[places[i]]
            for j in range(row.shape[0]):
                gradient[j] += row[j]
        if unit_norm:
            _subtract_projections(gradients, weights[i : i + 1])
        length = np.sqrt(_adam(weights[i], exp_avg[i], exp_avg_sq[i], gradient, rates))
        if unit_norm:
            scale, row = np.float32(1) / length, weights[i]
            for j in range(row.shape[0]):
                row[j] *= scale


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _adam(weights, exp_avg, exp_avg_sq, gradient, rates):
    """A step of Adam on one row; returns the sum of squares of its new weights."""
    square = np.float32(0)
    for j in range(weights.shape[0]):
        exp_avg[j] += rates.one_less_beta1 * (gradient[j] - exp_avg[j])
        exp_avg_sq[j] = rates.beta2 * exp_avg_sq[j] + rates.one_less_beta2 * gradient[j] * gradient[j]
        weights[j] -= rates.step_size * exp_avg[j] / (np.sqrt(exp_avg_sq[j]) * rates.correction + rates.eps)
        square += weights[j] * weights[j]
    return square
