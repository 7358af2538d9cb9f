"""Load one tower of a transformers checkpoint, and list the weights that the checkpoint lacks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as bars

from encoders.blocks import hf_blocks
from encoders.hub import DINOV2, OtherRow, from_hub, local_folder
from encoders.row import Row
from plumbing.errors import UserError

# By modality: the prefix of a tower's configuration in that of a two-tower model, and the tower's input.
PART = {"image": "vision", "text": "text", "audio": "audio"}

INPUT = {"image": "pixel_values", "text": "input_ids", "audio": "input_features"}

Built = TypeVar("Built")


class Tower(NamedTuple):
    """One encoder of a transformers checkpoint, which may hold two."""

    model: PreTrainedModel
    blocks: str  # the dotted path of its list of blocks
    drawn: dict[str, nn.Parameter]  # weights that are not in the checkpoint: transformers drew them at random


def load_tower(name: str, row: Row, seed: int | None) -> Tower:
    """The tower that `row` asks for, of a folder or hub name; with a seed its weights are drawn at random."""
    return hf_load(name, functools.partial(build_tower, row, seed))


def hf_load(name: str, build: Callable[[str], Built]) -> Built:
    """Call `build` on a folder or hub name, with transformers' progress bar off and hub errors explained."""
    folder = local_folder(name)
    name = folder or DINOV2.get(name, name)
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        return from_hub(functools.partial(build, name), name, "" if folder else name)
    finally:
        if shown:
            bars.enable_progress_bar()


def build_tower(row: Row, seed: int | None, name: str) -> Tower:
    """Build a transformers model in float32 and find its blocks; used under `hf_load`.

    Of two towers it takes the row's modality, of an encoder with a decoder the encoder. OtherRow: a model type
    that belongs to another row. UserError: quantized weights, or a model that reads another modality.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if row.types and config.model_type not in row.types:
        kinds = " or ".join(row.types)
        raise OtherRow(f"{name!r} is a {config.model_type!r} model, not {kinds}", config.model_type)
    check_unquantized(name, config)
    part = getattr(config, f"{PART[row.modality]}_config", None) or config
    with_attention_that_is_here(config)
    model, drawn = random_model(part, config) if seed is not None else trained_model(name, part, config)
    # A T5EncoderModel checkpoint says is_encoder_decoder=False, but its bare model has a decoder.
    pair = row.modality == "text" and hasattr(model, "encoder") and hasattr(model, "decoder")
    tower = model.get_encoder() if part.is_encoder_decoder or pair else model
    check_input(name, tower, row.modality)
    return Tower(tower, row.blocks or hf_blocks(tower), drawn)


def check_unquantized(name: str, config: PreTrainedConfig):
    """UserError where the weights are quantized: the blocks have to run in float32."""
    if settings := getattr(config, "quantization_config", None):
        method = settings.get("quant_method") if isinstance(settings, dict) else type(settings).__name__
        raise UserError(f"{name!r} is quantized ({method}): take the checkpoint that it was made from")


def with_attention_that_is_here(config: PreTrainedConfig):
    """Reset an attention that needs another package (flash-attn), so that transformers takes its default."""
    configs = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    for each in filter(None, configs):
        if each._attn_implementation not in (None, "eager", "sdpa"):
            each._attn_implementation = None


def random_model(
    part: PreTrainedConfig, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """A model of `part`'s configuration with random weights, and an empty `drawn`: a control lacks nothing."""
    if found := bare_class(part):
        return found._from_config(part, dtype=torch.float32), {}
    return submodel(AutoModel.from_config(config, dtype=torch.float32), part), {}


def trained_model(
    name: str, part: PreTrainedConfig, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """The trained model of `part` (`config` itself, or one of its towers), and its weights that were drawn.

    Only some families can load a tower alone. The others, such as CLAP and LLaVA, would silently get random
    weights: their whole model is loaded, and the tower is taken out of it.
    """
    options: dict[str, Any] = dict(dtype=torch.float32, output_loading_info=True)
    if found := bare_class(part):
        loaded: Any = found.from_pretrained(name, config=part, **options)
        model, report = loaded
        if part is config or not report["missing_keys"]:
            return model, lacking(model, report["missing_keys"])
    whole, report = AutoModel.from_pretrained(name, config=config, **options)
    return submodel(whole, part), lacking(whole, report["missing_keys"])


def bare_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The bare model class of a configuration, by transformers' naming: ViTConfig, ViTModel; None: no such class."""
    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)


def lacking(model: PreTrainedModel, missing: set[str]) -> dict[str, nn.Parameter]:
    """{key: parameter} of the checkpoint's missing keys; for a buffer, a parameter of the same module."""
    parameters, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for key in sorted(missing):
        beside = model.get_submodule(key.rpartition(".")[0]).parameters(recurse=False)
        weights = parameters.get(key, next(beside, None))
        if weights is not None:
            found[key] = weights
    return found


def submodel(model: PreTrainedModel, config: PreTrainedConfig) -> Any:
    """The outermost module of `model` that was built from this type of configuration. UserError: there is none."""
    for module in model.modules():
        if type(getattr(module, "config", None)) is type(config):
            return module
    raise UserError(f"transformers has no bare model of the type {config.model_type!r} to hook")


def check_input(name: str, tower: PreTrainedModel, modality: str):
    """UserError where a tower reads another modality: by its main_input_name, or by forward()'s arguments."""
    wanted, taken = INPUT[modality], read_by(tower)
    said = getattr(tower, "main_input_name", taken[0])
    said = said[0] if isinstance(said, list) else said  # OneFormer lists a picture and its task
    if said != wanted or wanted not in taken:  # DETR's encoder says pixel_values and takes embeddings
        reads = said if said != wanted else taken[0]
        raise UserError(f"{name!r} reads {reads}, so it is no encoder of {modality}s")


def read_by(tower: nn.Module) -> list[str]:
    """The names of forward()'s arguments; a processor's other outputs have to be dropped."""
    return list(inspect.signature(tower.forward).parameters)


def widths_of(config: PreTrainedConfig) -> frozenset[int]:
    """The d_in that a configuration declares: of all blocks, or of each stage (Swin doubles it at each)."""
    names = [
        "hidden_size",
        "hidden_sizes",
        "embed_dim",
        "embed_dims",
        "d_model",
        "dim",
        "n_embd",
        "neck_hidden_sizes",
    ]
    found = [getattr(config, name, None) or () for name in names]
    widths = {width for value in found for width in (value if isinstance(value, list | tuple) else [value])}
    doubling = len(getattr(config, "depths", None) or ())
    return frozenset(width * 2**stage for width in widths for stage in range(doubling or 1))
