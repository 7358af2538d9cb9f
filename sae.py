"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093): code, loss, training step, files.

For one token x, with every decoder row of unit norm:

    z    = topk(relu((x - b_dec) @ W_enc + b_enc))      its code: at most k latents are above zero
    xhat = z @ W_dec + b_dec                            its reconstruction
"""

import json
import os
from argparse import ArgumentTypeError as UserError
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, no_type_check

import numpy as np
import safetensors.torch
import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import nn

from compiled import compiled
from files import make_folder, replacing, write_text

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
AUXK_ALPHA = 1 / 32  # Gao et al. 2024, section A.2
BLOCK_TOKENS = 4096  # tokens whose dense pre-activations are held at a time: 100 MB at d_sae 6,144


class Step(NamedTuple):
    """What one training step tells, left on the device: reading a number is the caller's host sync.

    Among several processes each holds its own share, and the sum over processes is the whole.
    """

    loss: Float[torch.Tensor, ""]  # the number that is differentiated
    squared_error: Float[torch.Tensor, ""]  # sum of |x - xhat|^2 over the tokens
    fired: Int[torch.Tensor, " d_sae"]  # on how many of the tokens each latent was above zero


class TopKSAE(nn.Module):
    """A TopK sparse autoencoder, W_enc the transpose of W_dec to begin with, as drawn from `seed`."""

    def __init__(self, d_in: int, d_sae: int, k: int, seed: int = 0):
        super().__init__()
        if not 1 <= k <= d_sae:
            raise UserError(f"{k} active latents of d_sae = {d_sae}: give a --top_k from 1 to {d_sae}")
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_enc_rows = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def W_enc(self) -> Float[torch.Tensor, "d_in d_sae"]:
        """The encoder, a view: it is stored latent by latent, since a sparse step touches whole latents."""
        return self.W_enc_rows.T

    def pre_acts(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The encoder before its ReLU and its TopK."""
        return linear(x - self.b_dec, self.W_enc_rows, self.b_enc)

    def encode_topk(
        self, x: Float[torch.Tensor, "*token d_in"]
    ) -> tuple[Float[torch.Tensor, "*token k"], Int[torch.Tensor, "*token k"]]:
        """The code as the k largest activations and their latents; an activation of 0 is no firing."""
        return largest(self.pre_acts(x), self.k)

    def encode(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The code of each token, dense."""
        return keep_largest(self.pre_acts(x), self.k)

    def decode(self, feature_acts: Float[torch.Tensor, "*token d_sae"]) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction from a dense code."""
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction of each token."""
        return self.decode(self.encode(x))

    def loss(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
    ) -> Step:
        """The mean squared error over tokens and dimensions, plus AuxK where `dead` latents are given.

        AuxK (Gao et al. 2024, A.2): the k_aux (by default d_in / 2) largest dead latents reconstruct the main
        error e, which is detached, and without b_dec, of which e is rid already: alpha |e - ehat|^2 / |e|^2.
        Plain autograd over dense codes: slow, and the oracle of `step_gradients`.
        """
        feature_acts = self.encode(x)
        error = x - self.decode(feature_acts)
        squared_error, loss = error.detach().square().sum(), error.square().mean()
        if dead is not None:
            dead_acts = keep_largest(self.pre_acts(x).masked_fill(~dead, -torch.inf), k_aux or self._k_aux())
            aux_error = error.detach() - dead_acts @ self.W_dec
            loss = loss + auxk_alpha * aux_error.square().sum() / _positive(squared_error)
        return Step(loss, squared_error, (feature_acts > 0).sum(0))

    def _k_aux(self) -> int:
        return max(self.d_in // 2, 1)

    @torch.no_grad()
    def step_gradients(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
        precision: str = "float32",
        most_dead: int | None = None,
    ) -> Step:
        """Set every `.grad` to the gradient of `loss`; one matrix product, then only what is active.

        `precision` (float32, bfloat16) is that of the matrix product alone. No more than `most_dead` dead latents
        take part in AuxK: on a GPU that costs less than to compute with all. Among several processes
        (torch.distributed) the means are over the tokens of all: the gradients are to be summed over them.
        """
        centered = x - self.b_dec
        values, latents = self._sparse_code(centered, precision)
        error, products = error_and_products(centered, self.W_dec, values, latents)
        squared_error = error.square().sum()
        n_tokens, total_error = _over_processes(
            torch.stack([squared_error.new_full((), len(x)), squared_error])
        )

        slope = -2 / (n_tokens * self.d_in)  # the gradient by xhat is slope * error
        values_gradient = (slope * products).masked_fill_(values <= 0, 0)
        sum_by_latent = SumByLatent(latents, self.d_sae)
        self.W_dec.grad = sum_by_latent(slope * values, error)
        self.W_enc_rows.grad = sum_by_latent(values_gradient, centered)
        self.b_enc.grad = sum_by_latent(values_gradient)

        loss = squared_error / (n_tokens * self.d_in)
        if dead is not None:
            chosen = _candidates(dead, most_dead)
            weight = auxk_alpha / _positive(total_error)
            loss += self._add_auxk(centered, error, dead, chosen, k_aux or self._k_aux(), weight)
        # b_dec is added in decoding, and subtracted before encoding: the sum over tokens of -dz @ W_enc.T.
        self.b_dec.grad = slope * error.sum(0) - self.W_enc @ self.b_enc.grad
        return Step(loss, squared_error, sum_by_latent((values > 0).float()).long())

    def _sparse_code(
        self, centered: Float[torch.Tensor, "token d_in"], precision: str
    ) -> tuple[Float[torch.Tensor, "token k"], Int[torch.Tensor, "token k"]]:
        """`encode_topk` of tokens that b_dec is taken from already, some thousand tokens at a time."""
        dtype = torch.bfloat16 if precision == "bfloat16" else centered.dtype
        tokens, rows, b_enc = (tensor.to(dtype) for tensor in (centered, self.W_enc_rows, self.b_enc))
        pre_acts = (linear(block, rows, b_enc) for block in tokens.split(BLOCK_TOKENS))
        codes = [largest(block.to(centered.dtype), self.k) for block in pre_acts]
        return torch.cat([values for values, _ in codes]), torch.cat([latents for _, latents in codes])

    def _add_auxk(
        self,
        centered: Float[torch.Tensor, "token d_in"],
        error: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"],
        chosen: Int[torch.Tensor, " candidate"],
        k_aux: int,
        weight: Float[torch.Tensor, ""],
    ) -> Float[torch.Tensor, ""]:
        """Add the gradients of weight * |e - ehat|^2, ehat being of those of the chosen latents that are dead."""
        if not len(chosen):
            return weight * error.square().sum()
        W_enc, W_dec = self.W_enc_rows[chosen], self.W_dec[chosen]
        pre_acts = torch.addmm(self.b_enc[chosen], centered, W_enc.T).masked_fill_(~dead[chosen], -torch.inf)
        dead_acts = keep_largest(pre_acts, k_aux)
        aux_error = error - dead_acts @ W_dec
        ehat_gradient = aux_error * (-2 * weight)
        acts_gradient = (ehat_gradient @ W_dec.T).masked_fill_(dead_acts <= 0, 0)
        self.W_dec.grad.index_add_(0, chosen, dead_acts.T @ ehat_gradient)
        self.W_enc_rows.grad.index_add_(0, chosen, acts_gradient.T @ centered)
        self.b_enc.grad.index_add_(0, chosen, acts_gradient.sum(0))
        return weight * aux_error.square().sum()

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from each (unit) decoder row's gradient the part along it: `normalize_decoder` undoes it."""
        gradient, rows = self.W_dec.grad, self.W_dec.detach()
        if rows.is_cpu and rows.dtype == torch.float32:
            share_out(_subtract_projections, gradient.numpy(), rows.numpy())
        else:
            gradient.addcmul_(torch.linalg.vecdot(gradient, rows)[:, None], rows, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def fold_standardizer(self, mean: Float[torch.Tensor, " d_in"], scale: float) -> None:
        """Turn an SAE of (x - mean) / scale into the SAE of x whose codes are `scale` times larger.

        W_enc and W_dec stay: ((x - mean) / scale - b_dec) @ W_enc + b_enc, times scale.
        """
        self.b_enc *= scale
        self.b_dec.mul_(scale).add_(mean)

    def save(self, folder: str | os.PathLike, metadata: dict | None = None) -> None:
        """Write the two files that `sae_lens.SAE.load_from_disk(folder)` reads."""
        config = {
            "architecture": "topk",
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "k": self.k,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "rescale_acts_by_decoder_norm": False,
            # Below 6.0.0 SAELens would drop the rest of the metadata.
            "metadata": {**(metadata or {}), "sae_lens_version": "6.0.0"},
        }
        tensors = {name: getattr(self, name).detach().float().cpu().contiguous() for name in TENSORS}
        make_folder(Path(folder))
        with replacing(Path(folder, WEIGHTS_FILE)) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))
        write_text(Path(folder, CONFIG_FILE), json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TopKSAE":
        """Read an SAE in the SAELens layout, also one of others; a `UserError` names what does not fit."""
        config = read_config(Path(folder, CONFIG_FILE))
        tensors = _read_weights(Path(folder, WEIGHTS_FILE), config["d_in"], config["d_sae"])
        sae = cls(config["d_in"], config["d_sae"], config["k"])
        with torch.no_grad():
            for name in TENSORS:
                getattr(sae, name).copy_(tensors[name])
            if not config.get("apply_b_dec_to_input", True):  # x @ W = (x - b_dec) @ W + b_dec @ W
                sae.b_enc += sae.b_dec @ sae.W_enc
            if config.get("rescale_acts_by_decoder_norm", False):
                norms = sae.W_dec.norm(dim=1)
                sae.W_enc.mul_(norms)
                sae.b_enc *= norms
                sae.W_dec /= _positive(norms)[:, None]
        for name in TENSORS:
            if not getattr(sae, name).isfinite().all():
                raise UserError(
                    f"{Path(folder, WEIGHTS_FILE)}: {name} holds NaN or infinite values: give another SAE"
                )
        return sae


def linear(
    x: Float[torch.Tensor, "*token d_in"],
    rows: Float[torch.Tensor, "d_sae d_in"],
    bias: Float[torch.Tensor, " d_sae"],
) -> Float[torch.Tensor, "*token d_sae"]:
    """x @ rows.T + bias. Without gradients by oneDNN, which can take a third less time on the CPU."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn and x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled():
        return onednn(x, rows, bias, "none", [], "")
    return F.linear(x, rows, bias)


def largest(
    pre_acts: Float[torch.Tensor, "*token d_sae"], k: int
) -> tuple[Float[torch.Tensor, "*token k"], Int[torch.Tensor, "*token k"]]:
    """The k largest positive entries of each row, and where they stand; filled up with zeros where fewer are.

    On the CPU, for the small k of an SAE, equal entries are taken in the order of their columns.
    """
    if pre_acts.is_cpu and pre_acts.dtype == torch.float32 and k <= 256:
        latents = torch.empty(*pre_acts.shape[:-1], k, dtype=torch.int64)
        bits = pre_acts.detach().contiguous().view(torch.int32)
        share_out(_largest_by_insertion, bits.view(-1, bits.shape[-1]).numpy(), latents.view(-1, k).numpy())
    else:
        latents = pre_acts.detach().topk(k, dim=-1, sorted=False).indices
    return pre_acts.gather(-1, latents).relu(), latents


def keep_largest(
    pre_acts: Float[torch.Tensor, "*token d_sae"], k: int
) -> Float[torch.Tensor, "*token d_sae"]:
    """The rows themselves with all but their k largest positive entries zero."""
    if k >= pre_acts.shape[-1]:
        return pre_acts.relu()
    values, latents = largest(pre_acts, k)
    return torch.zeros_like(pre_acts).scatter(-1, latents, values)


@compiled()
@no_type_check
def _largest_by_insertion(bits, latents):
    """Where the k largest of each row are, in descending order, by insertion into a list of k.

    A float's bits are compared as an integer: positive floats keep their order, any NaN has a place, and the
    maximum of a chunk vectorises. Few chunks hold anything above the k-th largest so far.
    """
    chunk_width, k = 128, latents.shape[1]
    for token in range(bits.shape[0]):
        row, found = bits[token], latents[token]
        top = np.full(k, np.int64(-(2**31) - 1))
        for start in range(0, row.shape[0], chunk_width):
            chunk = row[start : start + chunk_width]
            highest = chunk[0]
            for column in range(chunk.shape[0]):
                highest = max(highest, chunk[column])
            if highest <= top[k - 1]:
                continue
            for column in range(chunk.shape[0]):
                if chunk[column] > top[k - 1]:
                    place = k - 1
                    while place > 0 and chunk[column] > top[place - 1]:
                        top[place], found[place] = top[place - 1], found[place - 1]
                        place -= 1
                    top[place], found[place] = chunk[column], start + column


def error_and_products(
    centered: Float[torch.Tensor, "token d_in"],
    W_dec: Float[torch.Tensor, "d_sae d_in"],
    values: Float[torch.Tensor, "token k"],
    latents: Int[torch.Tensor, "token k"],
) -> tuple[Float[torch.Tensor, "token d_in"], Float[torch.Tensor, "token k"]]:
    """The error of decoding a sparse code, and its products with the decoder rows that the code names."""
    if centered.is_cpu and centered.dtype == torch.float32:
        rest = -latents.shape[1] % 4
        error, latents, values = centered.clone(), F.pad(latents, (0, rest)), F.pad(values, (0, rest))
        products = torch.empty_like(values)
        by_token = (tensor.numpy() for tensor in (error, values, latents, products))
        share_out(_subtract_and_multiply, *by_token, shared=(W_dec.detach().numpy(),))
        return error, products[:, : products.shape[1] - rest]
    with torch.enable_grad():  # the products are the gradient of a bag's weights
        weights = values.detach().requires_grad_()
        decoded = F.embedding_bag(latents, W_dec.detach(), per_sample_weights=weights, mode="sum")
        error = centered - decoded.detach()
        return error, torch.autograd.grad(decoded, weights, error)[0]


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def _subtract_and_multiply(error, values, latents, products, W_dec):
    """`error_and_products` in place; four rows at a time, since the wait is for the memory."""
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
    """Take from each gradient its projection on its unit row."""
    for i in range(rows.shape[0]):
        gradient, row, along = gradients[i], rows[i], np.float32(0)
        for j in range(row.shape[0]):
            along += gradient[j] * row[j]
        for j in range(row.shape[0]):
            gradient[j] -= along * row[j]


_helpers = ThreadPoolExecutor(os.cpu_count())


def share_out(kernel: Callable, *by_row: np.ndarray, shared: tuple = (), height: int = 32) -> None:
    """Call kernel(*by_row, *shared) on some rows at a time of each array, on as many threads as torch uses.

    The caller takes rows as the helpers do: on a core that another program holds nothing waits. (Numba's own
    threads, beside torch's, took turns on one core of two.)
    """
    n_rows = len(by_row[0])
    starts = iter(range(0, n_rows, height))

    def work():
        for start in starts:  # each is handed out once: next() holds the interpreter's lock
            kernel(*(array[start : start + height] for array in by_row), *shared)

    n_helpers = min(torch.get_num_threads(), -(-n_rows // height)) - 1
    helping = [_helpers.submit(work) for _ in range(n_helpers)]
    work()
    for helper in helping:
        helper.result()


class SumByLatent:
    """Sums over the tokens on which a latent is active: the sparse code's transpose times a dense matrix.

    Sorted by latent, the pairs of token and latent are one bag of tokens for each latent, and a bag is summed
    in its tokens' order: deterministic on every device.
    """

    def __init__(self, latents: Int[torch.Tensor, "token k"], d_sae: int):
        self.n_tokens = len(latents)
        if latents.is_cpu:
            self.order, self.starts = map(
                torch.from_numpy, _order_by_latent(latents.flatten().numpy(), d_sae)
            )
        else:
            in_order, self.order = latents.flatten().sort(stable=True)
            self.starts = torch.searchsorted(in_order, torch.arange(d_sae, device=latents.device))
        self.tokens = self.order // latents.shape[1]

    def __call__(
        self, weights: Float[torch.Tensor, "token k"], rows: Float[torch.Tensor, "token d_in"] | None = None
    ) -> Float[torch.Tensor, "d_sae ..."]:
        """Each latent's weighted sum of rows: [d_sae, d_in]; without rows its sum of weights: [d_sae]."""
        if rows is None:
            return self(weights, weights.new_ones(self.n_tokens, 1))[:, 0]
        weights = weights.flatten()[self.order]
        return F.embedding_bag(self.tokens, rows, self.starts, per_sample_weights=weights, mode="sum")


@compiled()
@no_type_check
def _order_by_latent(latents, d_sae):
    """The stable order that sorts latents, by counting them, and where in it each latent begins."""
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


def _candidates(
    dead: Bool[torch.Tensor, " d_sae"], at_most: int | None = None
) -> Int[torch.Tensor, " candidate"]:
    """The latents that AuxK computes with, the dead among them; to count the dead on a GPU would be a host sync."""
    if at_most is not None:
        return dead.byte().topk(at_most).indices
    return dead.nonzero()[:, 0] if dead.is_cpu else torch.arange(len(dead), device=dead.device)


def _over_processes(values: torch.Tensor) -> torch.Tensor:
    """The values summed over the processes of a distributed run; themselves where there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def _positive(divisor: Float[torch.Tensor, "..."]) -> Float[torch.Tensor, "..."]:
    """A divisor with its zeros made as small as can be: of a perfect reconstruction, or of an empty row."""
    return divisor.clamp_min(torch.finfo(divisor.dtype).tiny)


def read_config(path: Path) -> dict:
    """What an SAE's cfg.json says, its sizes as whole numbers; a `UserError` names what cannot be read."""
    layout = "give a folder in the SAELens layout"
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {CONFIG_FILE}: {layout}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {layout}") from None
    except ValueError:
        raise UserError(f"{path} is not JSON: {layout}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is no JSON object: {layout}")
    expected = {"architecture": "topk", "normalize_activations": "none", "reshape_activations": "none"}
    for key, value in expected.items():
        if config.get(key, value if key != "architecture" else "standard") != value:
            raise UserError(f"{path} has {key} {config.get(key)!r}: only {value!r} can be read")
    for key in ("d_in", "d_sae", "k"):
        number = config.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float) or number < 1 or number % 1:
            raise UserError(
                f"{path} has {key} {number!r}: it takes a whole number of at least 1, without which the SAE is "
                "not known"
            )
        config[key] = int(number)
    if config["k"] > config["d_sae"]:
        raise UserError(f"{path} has k {config['k']} above d_sae {config['d_sae']}: correct it")
    return config


def _read_weights(path: Path, d_in: int, d_sae: int) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no {WEIGHTS_FILE}: give a folder in the SAELens layout"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from None
    expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise UserError(f"{path} holds {found}, where its {CONFIG_FILE} asks for {expected}")
    return tensors
