"""SAEs in SAELens' layout, ours and published ones: their two files, read as modules that encode and decode.

With pre = (x - b_dec) @ W_enc + b_enc, the code z of a token is, by cfg.json's `architecture`:

    topk        the k largest entries of relu(pre)                              TopKSAE (sae.py)
    standard    relu(pre)                                                       ThresholdSAE, whose thresholds are 0
    jumprelu    relu(pre) where pre is above the latent's threshold, else 0     ThresholdSAE

A topk SAE may have normalize_activations layer_norm (LayerNormedTopK). What a configuration asks for besides is folded into the weights, so that these formulas hold as they stand; what
cannot be folded is refused by name. The names are those of SAELens 6 and, in brackets, of versions before it.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError

from plumbing.errors import UserError
from sae import CONFIG_FILE, TENSORS, WEIGHTS_FILE, SparseAutoencoder, TopKSAE, save_layout

ARCHITECTURES = ("topk", "standard", "jumprelu")

LAYOUT = "give a folder in the SAELens layout"

OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}

LAYER_NORM = (
    "layer_norm"  # each token is standardised over its dimensions, and its reconstruction scaled back
)
EPSILON = 1e-5  # is added to a token's standard deviation

AVERAGE_NORM = "expected_average_only_in"  # the SAE was trained on inputs scaled to a mean norm of sqrt(d_in)

UNIT = 1e-3  # decoder rows whose norms differ from 1 by less are of unit norm

Weights = dict[str, torch.Tensor]  # by the names in the file


class Config(NamedTuple):
    """What cfg.json says of an SAE."""

    architecture: str
    d_in: int
    d_sae: int
    k: int | None  # of topk
    subtracts_b_dec: bool  # from the input, before encoding
    scales_input: bool  # AVERAGE_NORM
    layer_norm: bool
    scales_by_decoder_norm: bool  # the pre-activations by the norms of the decoder's rows
    hook_name: str | None
    hook_layer: int | None


class ThresholdSAE(SparseAutoencoder):
    """An SAE whose latents fire above a threshold each: JumpReLU (arXiv 2407.14435), or ReLU with thresholds of 0."""

    threshold: torch.Tensor

    def __init__(self, weights: Weights):
        """`weights`: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], perhaps threshold [d_sae]."""
        super().__init__()
        self.architecture = "jumprelu" if "threshold" in weights else "standard"
        self.d_in, self.d_sae = weights["W_enc"].shape
        self.register_buffer("W_enc_rows", weights["W_enc"].T.contiguous())
        for name in ("b_enc", "W_dec", "b_dec"):
            self.register_buffer(name, weights[name])
        self.register_buffer("threshold", weights.get("threshold", torch.zeros_like(weights["b_enc"])))

    def code(self, pre_acts: Float[torch.Tensor, "*token d_sae"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The code of tokens of which the pre-activations are known, dense."""
        return pre_acts.relu().masked_fill(pre_acts <= self.threshold, 0)

    def save(self, folder: str | os.PathLike, metadata: dict | None = None) -> None:
        """Write the two files that `sae_lens.SAE.load_from_disk(folder)` reads."""
        names = (*TENSORS, "threshold") if self.architecture == "jumprelu" else TENSORS
        save_layout(folder, self.architecture, {name: getattr(self, name) for name in names}, {}, metadata)


class LayerNormedTopK(TopKSAE):
    """A TopK SAE of tokens (x - mean) / (std + EPSILON), whose mean and std (of n - 1) are each token's own.

    Its reconstructions are multiplied by std, and mean is added, as sae_lens does.
    """

    normalize_activations = LAYER_NORM

    def pre_acts(self, x: Float[torch.Tensor, "*token d_in"]) -> Float[torch.Tensor, "*token d_sae"]:
        """The pre-activations: the encoder without ReLU and TopK."""
        centered = x - x.mean(dim=-1, keepdim=True)
        return super().pre_acts(centered / (x.std(dim=-1, keepdim=True) + EPSILON))

    def reconstruct(
        self, x: Float[torch.Tensor, "*token d_in"], feature_acts: Float[torch.Tensor, "*token d_sae"]
    ) -> Float[torch.Tensor, "*token d_in"]:
        """The reconstruction of tokens `x` from their dense code."""
        return self.decode(feature_acts) * x.std(dim=-1, keepdim=True) + x.mean(dim=-1, keepdim=True)


SAE = TopKSAE | ThresholdSAE


@torch.no_grad()
def load(folder: str | os.PathLike, input_scale: float | None = None) -> SAE:
    """Read an SAE in SAELens' layout, ours or another's, in float32; a `UserError` names what does not fit.

    `input_scale`: what the inputs of an SAE with AVERAGE_NORM are multiplied by, sqrt(d_in) / their mean norm.
    """
    path = Path(folder, WEIGHTS_FILE)
    config = read_config(Path(folder, CONFIG_FILE))
    weights = fold(config, read_weights(path, config), path, input_scale)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinite values: give another SAE")
    if config.k is None:
        return ThresholdSAE(weights)
    kind = LayerNormedTopK if config.layer_norm else TopKSAE
    sae = kind(config.d_in, config.d_sae, config.k)
    for name in TENSORS:
        getattr(sae, name).copy_(weights[name])
    return sae


def fold(config: Config, weights: Weights, path: Path, input_scale: float | None) -> Weights:
    """The weights with all that `config` asks for folded in, worked out in float64."""
    W_enc, b_enc, W_dec, b_dec = (weights[name].double() for name in TENSORS)
    if not config.subtracts_b_dec:  # x @ W = (x - b_dec) @ W + b_dec @ W
        b_enc = b_enc + b_dec @ W_enc
    if config.scales_input:
        if input_scale is None:
            raise UserError(f"{path.parent} has normalize_activations {AVERAGE_NORM!r}: give its input_scale")
        W_enc, W_dec, b_dec = W_enc * input_scale, W_dec / input_scale, b_dec / input_scale
    norms = W_dec.norm(dim=1)
    if config.scales_by_decoder_norm:
        if config.k is None and not torch.allclose(norms, torch.ones_like(norms), atol=UNIT):
            raise UserError(
                f"{path.parent} has rescale_acts_by_decoder_norm with decoder rows that are not of unit norm: of "
                f"architecture {config.architecture} that cannot be read"
            )
        W_enc, b_enc = W_enc * norms, b_enc * norms
        W_dec = W_dec / norms.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    folded = dict(zip(TENSORS, (W_enc, b_enc, W_dec, b_dec), strict=True))
    return {name: tensor.float() for name, tensor in (weights | folded).items()}


def read_weights(path: Path, config: Config) -> Weights:
    """The tensors of an SAE, of the shapes that its configuration asks for."""
    try:
        weights = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {WEIGHTS_FILE}: {LAYOUT}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from None
    scaling = weights.pop("scaling_factor", None)  # an old version's, of fine-tuning; 1 where there was none
    if scaling is not None and not (scaling == 1).all():
        raise UserError(
            f"{path} holds a scaling_factor of fine-tuning, which cannot be read: give another SAE"
        )
    d_in, d_sae = config.d_in, config.d_sae
    expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if config.architecture == "jumprelu":
        expected["threshold"] = (d_sae,)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        raise UserError(f"{path} holds {found}, where its {CONFIG_FILE} asks for {expected}")
    return weights


def read_config(path: Path) -> Config:
    """Read an SAE's cfg.json; a `UserError` names what is wrong, or what cannot be read."""
    raw = read_json(path)
    metadata = raw.get("metadata")
    raw = {OLD_NAMES.get(key, key): value for key, value in raw.items()}
    own = {**raw, **(metadata if isinstance(metadata, dict) else {})}
    arguments = dict(raw.get("activation_fn_kwargs") or {})
    k = raw.get("k", arguments.pop("k", None))
    if raw.get("activation_fn") == "topk" and raw.get("architecture", "standard") == "standard":
        raw["architecture"] = "topk"  # as versions before 6 say it
    architecture = raw.get("architecture", "standard" if k is None else None)
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} has architecture {architecture!r}: only {', '.join(ARCHITECTURES)} can be read"
        )
    normalize = raw.get("normalize_activations") or "none"  # False and null, too
    refuse_unknown(path, own, architecture, normalize, arguments)
    d_in, d_sae = (whole_number(path, key, raw.get(key)) for key in ("d_in", "d_sae"))
    k = whole_number(path, "k", k) if architecture == "topk" else None
    if k is not None and k > d_sae:
        raise UserError(f"{path} has k {k} above d_sae {d_sae}: correct it")
    return Config(
        architecture,
        d_in,
        d_sae,
        k,
        bool(raw.get("apply_b_dec_to_input", True)),
        normalize in (True, AVERAGE_NORM),
        normalize == LAYER_NORM,
        bool(raw.get("rescale_acts_by_decoder_norm", False)),
        own.get("hook_name"),
        own.get("hook_layer"),
    )


def refuse_unknown(path: Path, own: dict, architecture: str, normalize: object, arguments: dict):
    """Refuse by name what would change an SAE's codes and is neither a formula above nor can be folded in."""
    normalizations = ("none", AVERAGE_NORM, True, *[LAYER_NORM] * (architecture == "topk"))
    known = {
        "normalize_activations": (normalize, normalizations),
        "reshape_activations": (own.get("reshape_activations", "none"), ("none",)),
        "activation_fn": (own.get("activation_fn", "relu"), ("relu", architecture)),
        "activation_fn_kwargs": (arguments, ({},)),
        "finetuning_scaling_factor": (own.get("finetuning_scaling_factor") or False, (False,)),
        "hook_head_index": (own.get("hook_head_index"), (None,)),
    }
    for key, (value, readable) in known.items():
        if value not in readable:
            choices = " and ".join(repr(choice) for choice in readable if choice is not True)
            raise UserError(f"{path} has {key} {value!r}: only {choices} can be read")


def read_json(path: Path) -> dict:
    """The object that a JSON file holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {CONFIG_FILE}: {LAYOUT}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {LAYOUT}") from None
    except ValueError:
        raise UserError(f"{path} is not JSON: {LAYOUT}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object: {LAYOUT}")
    return found


def whole_number(path: Path, key: str, number: object) -> int:
    """A size in cfg.json, which some programs write as a float."""
    if isinstance(number, bool) or not isinstance(number, int | float) or number < 1 or number % 1:
        raise UserError(f"{path} has {key} {number!r}, which is not a whole number of at least 1: correct it")
    return int(number)
