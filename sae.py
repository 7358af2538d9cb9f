"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093): code, loss, training step, and its two files.

For one token x, with every decoder row of unit norm:

    z    = topk(relu((x - b_dec) @ W_enc + b_enc))      its code: at most k latents are above zero
    xhat = z @ W_dec + b_dec                            its reconstruction
"""

import json
import os
from argparse import ArgumentTypeError as UserError
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import nn

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
AUXK_ALPHA = 1 / 32  # Gao et al. 2024, section A.2


class Step(NamedTuple):
    """What one training step tells, all of it left on the device: reading a number is the caller's host sync."""

    loss: Float[torch.Tensor, ""]  # the number that was differentiated
    squared_error: Float[torch.Tensor, ""]  # sum of |x - xhat|^2 over this process's tokens
    fired: Int[
        torch.Tensor, " d_sae"
    ]  # the number of this process's tokens on which each latent was above zero


class TopKSAE(nn.Module):
    """A TopK sparse autoencoder, W_enc the transpose of W_dec to begin with, as drawn from `seed`."""

    def __init__(self, d_in: int, d_sae: int, k: int, seed: int = 0):
        super().__init__()
        if not 1 <= k <= d_sae:
            raise UserError(f"k = {k} active latents of d_sae = {d_sae}: give a --top_k from 1 to {d_sae}")
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        rows /= rows.norm(dim=1, keepdim=True)
        # Shaped [d_in, d_sae] but stored latent by latent: a sparse step touches whole latents.
        self.W_enc = nn.Parameter(rows.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def pre_acts(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The encoder before its ReLU and its TopK."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode_topk(
        self, x: Float[torch.Tensor, "*token d_in"]
    ) -> tuple[Float[torch.Tensor, "*token k"], Int[torch.Tensor, "*token k"]]:
        """The code as the k largest activations and their latents; an activation may be 0, which is no firing."""
        values, latents = self.pre_acts(x).topk(self.k, dim=-1)
        return values.relu(), latents

    def encode(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The code of each token, dense."""
        return self._dense(*self.encode_topk(x))

    def decode(self, feature_acts: Float[torch.Tensor, "*token d_sae"]) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction from a dense code."""
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction of each token."""
        return self.decode(self.encode(x))

    def _dense(
        self, values: Float[torch.Tensor, "*token kept"], latents: Int[torch.Tensor, "*token kept"]
    ) -> Float[torch.Tensor, "*token d_sae"]:
        return values.new_zeros(*values.shape[:-1], self.d_sae).scatter(-1, latents, values)

    # Training ---------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
    ) -> Float[torch.Tensor, ""]:
        """The mean squared error over tokens and dimensions, plus AuxK where `dead` latents are given.

        AuxK (Gao et al. 2024, A.2): the k_aux (by default d_in / 2) largest dead latents reconstruct the main
        error e, detached and so without b_dec, which e has been rid of already: alpha |e - ehat|^2 / |e|^2.
        """
        error = x - self(x)
        loss = error.square().mean()
        if dead is None:
            return loss
        return loss + auxk_alpha * self._auxk(x, error.detach(), dead, k_aux)

    def _auxk(self, x, error, dead, k_aux) -> Float[torch.Tensor, ""]:
        masked = self.pre_acts(x).masked_fill(~dead, -torch.inf)
        values, latents = masked.topk(min(k_aux or self.d_in // 2, self.d_sae), dim=-1)
        aux_error = error - self._dense(values.relu(), latents) @ self.W_dec
        return aux_error.square().sum() / error.square().sum().clamp_min(torch.finfo(error.dtype).tiny)

    def step_gradients(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
    ) -> Step:
        """Fill every `.grad` with the gradient of `loss`."""
        return self.step_gradients_by_autograd(x, dead, k_aux, auxk_alpha)

    def step_gradients_by_autograd(
        self,
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, " d_sae"] | None = None,
        k_aux: int | None = None,
        auxk_alpha: float = AUXK_ALPHA,
    ) -> Step:
        """What `step_gradients` computes, left to autograd over dense codes: slow, and its oracle."""
        self.zero_grad()
        loss = self.loss(x, dead, k_aux, auxk_alpha)
        loss.backward()
        with torch.no_grad():
            feature_acts = self.encode(x)
            squared_error = (x - self.decode(feature_acts)).square().sum()
        return Step(loss.detach(), squared_error, (feature_acts > 0).sum(0))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from each decoder row's gradient its part along the row, which `normalize_decoder` would undo."""
        along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) / self.W_dec.square().sum(1, keepdim=True)
        self.W_dec.grad -= along * self.W_dec

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def fold_standardizer(self, mean: Float[torch.Tensor, " d_in"], scale: float) -> None:
        """Turn an SAE of (x - mean) / scale into the SAE of x whose codes are `scale` times larger.

        W_dec keeps its unit norm and W_enc its values: ((x - mean) / scale - b_dec) @ W_enc + b_enc, times scale.
        """
        self.b_enc *= scale
        self.b_dec.mul_(scale).add_(mean)

    # Files ------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike, metadata: dict | None = None) -> None:
        """Write cfg.json and sae_weights.safetensors into `folder`, as `sae_lens.SAE.load_from_disk` reads them."""
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
        tensors = {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in self.named_parameters()
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        _write_whole(Path(folder, WEIGHTS_FILE), safetensors.torch.save(tensors))
        _write_whole(Path(folder, CONFIG_FILE), json.dumps(config, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TopKSAE":
        """Read an SAE in the SAELens layout, ours or a published one; a `UserError` names what does not fit."""
        config = _read_config(Path(folder, CONFIG_FILE))
        tensors = _read_weights(Path(folder, WEIGHTS_FILE), config["d_in"], config["d_sae"])
        sae = cls(config["d_in"], config["d_sae"], config["k"])
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                parameter.copy_(tensors[name])
            if not config.get("apply_b_dec_to_input", True):  # x @ W = (x - b_dec) @ W + b_dec @ W
                sae.b_enc += sae.b_dec @ sae.W_enc
            if config.get("rescale_acts_by_decoder_norm", False):
                norms = sae.W_dec.norm(dim=1)
                sae.W_enc *= norms
                sae.b_enc *= norms
                sae.W_dec /= norms[:, None]
        return sae


def _write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: a reader sees the whole file or none."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no {CONFIG_FILE}: give a folder in the SAELens layout"
        ) from None
    except ValueError:
        raise UserError(f"{path} is not JSON: give a folder in the SAELens layout") from None
    expected = {"architecture": "topk", "normalize_activations": "none", "reshape_activations": "none"}
    for key, value in expected.items():
        if config.get(key, value if key != "architecture" else "standard") != value:
            raise UserError(f"{path} has {key} {config.get(key)!r}: only {value!r} can be read")
    for key in ("d_in", "d_sae", "k"):
        if not isinstance(config.get(key), int):
            raise UserError(f"{path} lacks the whole number {key!r}, without which the SAE is not known")
    return config


def _read_weights(path: Path, d_in: int, d_sae: int) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no {WEIGHTS_FILE}: give a folder in the SAELens layout"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from None
    expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise UserError(f"{path} holds {found}, where its {CONFIG_FILE} asks for {expected}")
    return tensors


# Evaluation ---------------------------------------------------------------------------------------------------


class UnexplainedVariance:
    """The fraction of variance unexplained over every token it is shown (DESIGN 2): 1 for predicting the mean.

    Float64 sums, about the first batch's mean so that nothing cancels; kept on the device until `fvu` is asked.
    """

    def __init__(self):
        self.n_tokens, self.center, self.sums = 0, None, None

    def update(self, x: Float[torch.Tensor, "token d_in"], xhat: Float[torch.Tensor, "token d_in"]) -> None:
        """Add a batch of tokens and their reconstructions."""
        x, xhat = x.detach().double(), xhat.detach().double()
        if self.center is None:
            self.center = x.mean(0)
            self.sums = [torch.zeros_like(self.center) for _ in range(3)]
        self.n_tokens += len(x)
        away = x - self.center
        for total, values in zip(self.sums, (away, away.square(), (x - xhat).square()), strict=True):
            total += values.sum(0)

    def fvu(self) -> float:
        """The squared error of all tokens over their squared distance from their mean."""
        away, away_squared, squared_error = self.sums
        return float(squared_error.sum() / (away_squared - away.square() / self.n_tokens).sum())
