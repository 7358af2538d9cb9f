"""Load the tower that is wanted out of a checkpoint of transformers, and see which weights it lacks."""

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

PART = {"image": "vision", "text": "text", "audio": "audio"}

INPUT = {"image": "pixel_values", "text": "input_ids", "audio": "input_features"}

Built = TypeVar("Built")


class Tower(NamedTuple):
    """One encoder of transformers, out of a checkpoint that may hold more than one."""

    model: PreTrainedModel
    blocks: str  # the dotted path of its list of blocks
    drawn: dict[str, nn.Parameter]  # what the checkpoint lacks, drawn at random


def load_tower(name: str, row: Row, seed: int | None) -> Tower:
    """The tower of a folder or hub name that a row wants, with the checkpoint's weights or drawn from a seed."""
    return hf_load(name, functools.partial(build_tower, row, seed))


def hf_load(name: str, build: Callable[[str], Built]) -> Built:
    """`build` on a transformers folder or hub name; its bar of weights read from disk is not shown."""
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
    """Build a transformers model in single precision, and find its blocks.

    Of a checkpoint with two towers it is the one that is wanted, of an encoder and decoder the encoder.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if row.types and config.model_type not in row.types:
        kinds = " or ".join(row.types)
        raise OtherRow(f"{name!r} is a {config.model_type!r} model, not {kinds}", config.model_type)
    check_unquantized(name, config)
    part = getattr(config, f"{PART[row.modality]}_config", None) or config
    with_attention_that_is_here(config)
    model, drawn = random_model(part, config) if seed is not None else trained_model(name, part, config)
    # T5EncoderModel's checkpoints call themselves no encoder-decoder, yet the bare model is one
    pair = row.modality == "text" and hasattr(model, "encoder") and hasattr(model, "decoder")
    tower = model.get_encoder() if part.is_encoder_decoder or pair else model
    check_input(name, tower, row.modality)
    return Tower(tower, row.blocks or hf_blocks(tower), drawn)


def check_unquantized(name: str, config: PreTrainedConfig):
    """Refuse weights of a few bits: blocks are run in single precision."""
    if settings := getattr(config, "quantization_config", None):
        method = settings.get("quant_method") if isinstance(settings, dict) else type(settings).__name__
        raise UserError(f"{name!r} is quantized ({method}): take the checkpoint that it was made from")


def with_attention_that_is_here(config: PreTrainedConfig):
    """Let transformers choose the attention where a configuration asks for a package such as flash-attn."""
    configs = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    for each in filter(None, configs):
        if each._attn_implementation not in (None, "eager", "sdpa"):
            each._attn_implementation = None


def random_model(
    part: PreTrainedConfig, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """The model of the configuration `part`, alone or out of `config`'s, at random, and what it lacks: nothing."""
    if found := bare_class(part):
        return found._from_config(part, dtype=torch.float32), {}
    return submodel(AutoModel.from_config(config, dtype=torch.float32), part), {}


def trained_model(
    name: str, part: PreTrainedConfig, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """The trained model of `part`, which is `config` or one tower of it, and what the checkpoint lacks of it.

    Only some families can load a tower alone: the others, CLAP and LLaVA among them, would draw it at random.
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
    """The bare model of a configuration, which transformers names alike: ViTConfig, ViTModel; or None."""
    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)


def lacking(model: PreTrainedModel, missing: set[str]) -> dict[str, nn.Parameter]:
    """{name: parameter} that transformers drew at random; for a missing buffer, a parameter of its module."""
    parameters, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for key in sorted(missing):
        beside = model.get_submodule(key.rpartition(".")[0]).parameters(recurse=False)
        weights = parameters.get(key, next(beside, None))
        if weights is not None:
            found[key] = weights
    return found


def submodel(model: PreTrainedModel, config: PreTrainedConfig) -> Any:
    """The outermost module that is built from a configuration of this type."""
    for module in model.modules():
        if type(getattr(module, "config", None)) is type(config):
            return module
    raise UserError(f"transformers has no bare model of the type {config.model_type!r} to hook")


def check_input(name: str, tower: PreTrainedModel, modality: str):
    """Refuse a tower that does not read the modality, by what it says and by what it takes."""
    wanted, taken = INPUT[modality], read_by(tower)
    said = getattr(tower, "main_input_name", taken[0])
    said = said[0] if isinstance(said, list) else said  # OneFormer lists a picture and its task
    if said != wanted or wanted not in taken:  # DETR's encoder says pixel_values and takes embeddings
        reads = said if said != wanted else taken[0]
        raise UserError(f"{name!r} reads {reads}, so it is no encoder of {modality}s")


def read_by(tower: nn.Module) -> list[str]:
    """The names of a model's inputs: a processor may put out more."""
    return list(inspect.signature(tower.forward).parameters)


def widths_of(config: PreTrainedConfig) -> frozenset[int]:
    """The widths that a configuration declares: one of all blocks, or one a stage, which may double."""
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
