"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093): code, loss, training step, files.

For one token x, with every decoder row of unit norm:

    z    = topk(relu((x - b_dec) @ W_enc + b_enc))      its code: at most k latents are above zero
    xhat = z @ W_dec + b_dec                            its reconstruction
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from plumbing.errors import UserError
from plumbing.files import make_folder, replacing, write_text
from plumbing.processes import add_up
from plumbing.threads import share_out
from sae_kernels import RowGradients, SumByLatent, _subtract_projections, error_and_products
from screening import largest_products
from topk import keep_largest, largest, linear

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")

AUXK_ALPHA = 1 / 32  # Gao et al. 2024, section A.2


class Step(NamedTuple):
    """The numbers of one training step, still on the device: to read one is a host sync.

    Of a step together, each process has those of its own tokens; their sum over processes is that of the whole batch.
    """

    loss: Float[torch.Tensor, ""]  # whose gradient is taken
    squared_error: Float[torch.Tensor, ""]  # sum of |x - xhat|^2 over the tokens
    fired: Int[torch.Tensor, " d_sae"]  # the number of tokens on which each latent was above zero


class Gradients(NamedTuple):
    """The gradients of the loss; those of the two matrices are not worked out until they are asked for."""

    W_dec: RowGradients
    W_enc_rows: RowGradients
    b_enc: Float[torch.Tensor, " d_sae"]
    b_dec: Float[torch.Tensor, " d_in"]


class AuxK(NamedTuple):
    """The loss of some latents, of which the dead ones reconstruct the error, and its gradients."""

    loss: Float[torch.Tensor, ""]
    W_dec: Float[torch.Tensor, "chosen d_in"]
    W_enc_rows: Float[torch.Tensor, "chosen d_in"]
    b_enc: Float[torch.Tensor, " chosen"]


class SparseAutoencoder(nn.Module):
    """What all SAEs here have in common: a linear encoder and decoder; a subclass says what becomes the code."""

    W_enc_rows: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    normalize_activations = "none"  # by SAELens' names; what is done to the tokens before they are encoded

    @property
    def W_enc(self) -> Float[torch.Tensor, "d_in d_sae"]:
        """The encoder, a view of `W_enc_rows`, which keeps each latent's weights together for the sparse step."""
        return self.W_enc_rows.T

    def pre_acts(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The pre-activations: the encoder alone."""
        return linear(x - self.b_dec, self.W_enc_rows, self.b_enc)

    def code(self, pre_acts: Float[torch.Tensor, "*token d_sae"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The code of tokens of which the pre-activations are known, dense."""
        raise NotImplementedError

    def encode(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The code of each token, dense."""
        return self.code(self.pre_acts(x))

    def decode(self, feature_acts: Float[torch.Tensor, "*token d_sae"]) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction from a dense code."""
        return feature_acts @ self.W_dec + self.b_dec

    def reconstruct(
        self, x: Float[torch.Tensor, "*token d_in"], feature_acts: Float[torch.Tensor, "*token d_sae"]
    ) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction of tokens `x` from their dense code."""
        return self.decode(feature_acts)

    def forward(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction of each token."""
        return self.reconstruct(x, self.encode(x))


class TopKSAE(SparseAutoencoder):
    """A TopK sparse autoencoder. W_dec is drawn from `seed`, and W_enc starts as its transpose."""

    architecture = "topk"

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

    def encode_topk(
        self, x: Float[torch.Tensor, "*token d_in"]
    ) -> tuple[Float[torch.Tensor, "*token k"], Int[torch.Tensor, "*token k"]]:
        """The code as its k largest activations and their latents; a latent with activation 0 did not fire."""
        return largest(self.pre_acts(x), self.k)

    def code(self, pre_acts: Float[torch.Tensor, "*token d_sae"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The code of tokens of which the pre-activations are known, dense."""
        return keep_largest(pre_acts, self.k)

    def loss(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
    ) -> Step:
        """The mean squared error over tokens and dimensions, plus AuxK where `dead` latents are given.

        AuxK (Gao et al. 2024, A.2) is alpha |e - ehat|^2 / |e|^2: the k_aux (by default d_in / 2) largest dead latents
        reconstruct the main error e, which is detached; b_dec is not added, since e no longer contains it.
        This is plain autograd over dense codes: slow, the reference that `gradients` is tested against.
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
    def gradients(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
        precision: str = "float32",
        most_dead: int | None = None,
        together: bool = False,
    ) -> tuple[Step, Gradients]:
        """The gradients of `loss`, with one dense matrix product; the rest is of active latents only.

        `precision` (float32, bfloat16) is that of the matrix product. At most `most_dead` dead latents take part in
        AuxK, which saves a GPU from computing with all. `together`: the means are over the tokens of all processes,
        so that the sum of their gradients is that of the whole batch.
        """
        centered = x - self.b_dec
        values, latents = self._sparse_code(centered, precision)
        error, products = error_and_products(centered, self.W_dec, values, latents)
        squared_error = error.square().sum()
        sums = torch.stack([squared_error.new_full((), len(x)), squared_error])
        if together:
            add_up(sums)
        n_tokens, total_error = sums
        loss = squared_error / (n_tokens * self.d_in)

        if dead is None:
            dead, auxk_alpha, most_dead = torch.zeros_like(self.b_enc, dtype=torch.bool), 0.0, 0
        chosen, weight = _candidates(dead, most_dead), auxk_alpha / _positive(total_error)
        auxk = self._auxk(centered, error, dead, chosen, k_aux or self._k_aux(), weight)
        slope = -2 / (n_tokens * self.d_in)  # the gradient by xhat is slope * error
        values_gradient = (slope * products).masked_fill_(values <= 0, 0)
        sum_by_latent = SumByLatent(latents, self.d_sae)
        b_enc = sum_by_latent(values_gradient).index_add_(0, chosen, auxk.b_enc)
        # b_dec is added in decoding, and subtracted before encoding: the sum over tokens of -dz @ W_enc.T.
        gradients = Gradients(
            W_dec=RowGradients(sum_by_latent, slope * values, error, chosen, auxk.W_dec),
            W_enc_rows=RowGradients(sum_by_latent, values_gradient, centered, chosen, auxk.W_enc_rows),
            b_enc=b_enc,
            b_dec=slope * error.sum(0) - self.W_enc @ b_enc,
        )
        fired = sum_by_latent((values > 0).float()).long()
        return Step(loss + auxk.loss, squared_error, fired), gradients

    def _sparse_code(
        self, centered: Float[torch.Tensor, "token d_in"], precision: str
    ) -> tuple[Float[torch.Tensor, "token k"], Int[torch.Tensor, "token k"]]:
        """`encode_topk` of tokens from which b_dec is already subtracted; with "bfloat16", of rounded ones."""
        dtype = torch.bfloat16 if precision == "bfloat16" else centered.dtype
        tokens, rows, b_enc = (tensor.to(dtype) for tensor in (centered, self.W_enc_rows, self.b_enc))
        values, latents = largest_products(tokens, rows, b_enc, self.k)
        return values.to(centered.dtype), latents

    def _auxk(
        self,
        centered: Float[torch.Tensor, "token d_in"],
        error: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"],
        chosen: Int[torch.Tensor, " chosen"],
        k_aux: int,
        weight: Float[torch.Tensor, ""],
    ) -> AuxK:
        """weight * |e - ehat|^2, where ehat is of those `chosen` latents that are dead, and its gradients."""
        W_enc, W_dec, b_enc = self.W_enc_rows[chosen], self.W_dec[chosen], self.b_enc[chosen]
        if not len(chosen):
            return AuxK(weight * error.square().sum(), W_dec, W_enc, b_enc)
        pre_acts = torch.addmm(b_enc, centered, W_enc.T).masked_fill_(~dead[chosen], -torch.inf)
        dead_acts = keep_largest(pre_acts, k_aux)
        aux_error = error - dead_acts @ W_dec
        ehat_gradient = aux_error * (-2 * weight)
        acts_gradient = (ehat_gradient @ W_dec.T).masked_fill_(dead_acts <= 0, 0)
        return AuxK(
            loss=weight * aux_error.square().sum(),
            W_dec=dead_acts.T @ ehat_gradient,
            W_enc_rows=acts_gradient.T @ centered,
            b_enc=acts_gradient.sum(0),
        )

    def set_gradients(self, gradients: Gradients) -> None:
        """Set every `.grad`."""
        self.W_dec.grad, self.W_enc_rows.grad = gradients.W_dec.dense(), gradients.W_enc_rows.dense()
        self.b_enc.grad, self.b_dec.grad = gradients.b_enc, gradients.b_dec

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Remove from the gradient of each (unit) decoder row the part along the row, which renormalising would undo."""
        gradient, rows = gradient_of(self.W_dec), self.W_dec.detach()
        if rows.is_cpu and rows.dtype == torch.float32:
            share_out(_subtract_projections, gradient.numpy(), rows.numpy())
        else:
            gradient.addcmul_(torch.linalg.vecdot(gradient, rows)[:, None], rows, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scale every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def fold_standardizer(self, mean: Float[torch.Tensor, " d_in"], scale: float) -> None:
        """Turn an SAE of (x - mean) / scale into one of x, whose codes are `scale` times larger.

        W_enc and W_dec stay, since scale * (((x - mean) / scale - b_dec) @ W_enc + b_enc)
        = (x - mean - scale * b_dec) @ W_enc + scale * b_enc.
        """
        self.b_enc.mul_(scale)
        self.b_dec.mul_(scale).add_(mean)

    def save(self, folder: str | os.PathLike, metadata: dict | None = None) -> None:
        """Write the two files that `sae_lens.SAE.load_from_disk(folder)` reads."""
        config: dict[str, object] = {"k": self.k, "rescale_acts_by_decoder_norm": False}
        config["normalize_activations"] = self.normalize_activations
        save_layout(
            folder, self.architecture, {name: getattr(self, name) for name in TENSORS}, config, metadata
        )


def _candidates(
    dead: Bool[torch.Tensor, " d_sae"], at_most: int | None = None
) -> Int[torch.Tensor, " candidate"]:
    """The latents that AuxK computes with: on the CPU the dead ones; on a GPU, where counting them would be a host
    sync, `at_most` latents, the dead ones first.
    """
    if at_most is not None:
        return dead.byte().topk(at_most).indices
    return dead.nonzero()[:, 0] if dead.is_cpu else torch.arange(len(dead), device=dead.device)


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's gradient; RuntimeError where no step has set one."""
    if parameter.grad is None:
        raise RuntimeError("there are no gradients yet: set_gradients sets them")
    return parameter.grad


def _positive(divisor: Float[torch.Tensor, "..."]) -> Float[torch.Tensor, "..."]:
    """A divisor with zeros (a perfect reconstruction, an empty decoder row) replaced by the smallest positive number."""
    return divisor.clamp_min(torch.finfo(divisor.dtype).tiny)


def save_layout(
    folder: str | os.PathLike,
    architecture: str,
    tensors: dict[str, torch.Tensor],
    own: dict[str, object],
    metadata: dict | None,
) -> None:
    """Write an SAE's two files in SAELens' layout; `own` is what only this architecture's cfg.json has."""
    d_in, d_sae = tensors["W_enc"].shape
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        **own,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": own.get("normalize_activations", "none"),
        "reshape_activations": "none",
        # With a version below 6.0.0, SAELens drops the other metadata.
        "metadata": {**(metadata or {}), "sae_lens_version": "6.0.0"},
    }
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    make_folder(Path(folder))
    with replacing(Path(folder, WEIGHTS_FILE)) as temporary:
        temporary.write_bytes(safetensors.torch.save(whole))
    write_text(Path(folder, CONFIG_FILE), json.dumps(config, indent=2) + "\n")
