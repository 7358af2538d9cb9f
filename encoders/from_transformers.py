"""Encoders of transformers: image, text and audio towers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from encoders.hub import DINOV2, foreign_errors, from_hub, local_folder
from encoders.inputs import words_and_last
from encoders.tokenizers import (
    check_vocabulary,
    context,
    fixed_ids,
    hf_tokenizer,
    pad,
    read_by,
    text_token,
    token_ids,
    unknown_share,
)
from encoders.wrapper import Parts, Row, hf_blocks
from plumbing.errors import UserError, first_line

PART = {"image": "vision", "text": "text", "audio": "audio"}

INPUT = {"image": "pixel_values", "text": "input_ids", "audio": "input_features"}


def hf_load(name: str, build: Callable[[str], Any]) -> Any:
    """`build` on a transformers folder or hub name; its bar of weights read from disk is not shown."""
    from transformers.utils import logging as bars

    folder = local_folder(name)
    name = folder or DINOV2.get(name, name)
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        return from_hub(functools.partial(build, name), name, "" if folder else name)
    finally:
        if shown:
            bars.enable_progress_bar()


class Tower(NamedTuple):
    """One encoder of transformers, out of a checkpoint that may hold more than one."""

    model: Any
    blocks: str  # the dotted path of its list of blocks
    drawn: dict[str, Any]  # parameters and buffers that the checkpoint lacks


def hf_tower(row: Row, seed: int | None, name: str) -> Tower:
    """Build a transformers model in single precision, and find its blocks.

    Of a checkpoint with two towers it is the one that is wanted, of an encoder and decoder the encoder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    check_type(name, config.model_type, row)
    check_unquantized(name, config)
    part = getattr(config, f"{PART[row.modality]}_config", None) or config
    with_attention_that_is_here(config)
    model, drawn = hf_random(part, config) if seed is not None else hf_weights(name, part, config)
    # T5EncoderModel's checkpoints call themselves no encoder-decoder, yet the bare model is one
    pair = row.modality == "text" and hasattr(model, "encoder") and hasattr(model, "decoder")
    tower = model.get_encoder() if part.is_encoder_decoder or pair else model
    reads = [
        tower.main_input_name,
        read_by(tower)[0],
    ]  # DETR's encoder says pixel_values and takes embeddings
    if reads[0] != INPUT[row.modality] or reads[0] not in read_by(tower):
        raise UserError(
            f"{name!r} reads {reads[reads[0] == INPUT[row.modality]]}, so it is no encoder of {row.modality}s"
        )
    return Tower(tower, row.blocks or hf_blocks(tower), drawn)


def check_unquantized(name: str, config: Any):
    """Refuse weights of a few bits: blocks are run in single precision."""
    if settings := getattr(config, "quantization_config", None):
        method = settings.get("quant_method") if isinstance(settings, dict) else type(settings).__name__
        raise UserError(f"{name!r} is quantized ({method}): take the checkpoint that it was made from")


def with_attention_that_is_here(config: Any):
    """Let transformers choose the attention where a configuration asks for a package such as flash-attn."""
    configs = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    for each in filter(None, configs):
        if each._attn_implementation not in (None, "eager", "sdpa"):
            each._attn_implementation = None


def hf_class(config: Any) -> Any:
    """The bare model of a configuration, which transformers names alike: ViTConfig, ViTModel; or None."""
    import transformers

    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)


def hf_random(part: Any, config: Any) -> tuple[Any, dict]:
    """The model of the configuration `part`, alone or out of `config`'s, at random, and what it lacks: nothing."""
    import torch
    from transformers import AutoModel

    if found := hf_class(part):
        return found._from_config(part, dtype=torch.float32), {}
    return submodel(AutoModel.from_config(config, dtype=torch.float32), part), {}


def hf_weights(name: str, part: Any, config: Any) -> tuple[Any, dict]:
    """The trained model of `part`, which is `config` or one tower of it, and what the checkpoint lacks of it.

    Only some families can load a tower alone: the others, CLAP and LLaVA among them, would draw it at random.
    """
    import torch
    from transformers import AutoModel

    options = dict(dtype=torch.float32, output_loading_info=True)
    if found := hf_class(part):
        model, report = found.from_pretrained(name, config=part, **options)
        if part is config or not report["missing_keys"]:
            return model, lacking(model, report)
    whole, report = AutoModel.from_pretrained(name, config=config, **options)
    return submodel(whole, part), lacking(whole, report)


def lacking(model: Any, report: dict) -> dict:
    """{name: parameter} that transformers drew at random, as it reports; of a module for a buffer that is missing."""
    parameters, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for key in sorted(report["missing_keys"]):
        beside = model.get_submodule(key.rpartition(".")[0]).parameters(recurse=False)
        weights = parameters.get(key, next(beside, None))
        if weights is not None:
            found[key] = weights
    return found


def submodel(model: Any, config: Any) -> Any:
    """The outermost module that is built from a configuration of this type."""
    found = [module for module in model.modules() if type(getattr(module, "config", None)) is type(config)]
    if not found:
        raise UserError(f"transformers has no bare model of the type {config.model_type!r} to hook")
    return found[0]


class OtherFamily(UserError):
    """A checkpoint of another family than its row's: `model_type` is transformers' word for it."""

    def __init__(self, model_type: str, message: str):
        super().__init__(message)
        self.model_type = model_type


def check_type(name: str, found: str, row: Row):
    """Refuse a checkpoint of another family, and say which row takes it."""
    if row.types and found not in row.types:
        raise OtherFamily(found, f"{name!r} is a {found!r} model, not {' or '.join(row.types)}")


def hf_image(name: str, row: Row, seed: int | None) -> Parts:
    """An image encoder of transformers, behind its own image processor."""
    from torch.utils.data import default_collate
    from transformers import AutoImageProcessor

    tower, blocks, drawn = hf_load(name, functools.partial(hf_tower, row, seed))
    processor = hf_load(name, AutoImageProcessor.from_pretrained)
    # what is put before the patches; a head's own cls_token (AIMv2) is a query and no token of the blocks
    special = {path.split("embeddings.")[-1] for path, _ in tower.named_parameters() if "embeddings." in path}
    has_cls = bool(special & {"cls_token", "class_embedding"})
    registers = (getattr(tower.config, "num_register_tokens", 0) or 0) + ("distillation_token" in special)
    return Parts(
        tower,
        functools.partial(unmasked, tower)
        if tower.config.model_type == "vit_mae"
        else lambda batch: tower(**batch),
        equal_sizes(name, functools.partial(processed, processor, read_by(tower)), tower.config),
        default_collate,
        mask=patch_mask,
        registers=slice(int(has_cls), int(has_cls) + registers),
        token="cls" if has_cls else "mean",
        blocks=blocks,
        widths=hf_widths(tower.config),
        drawn=drawn,
    )


def hf_widths(config: Any) -> frozenset[int]:
    """The widths that a configuration declares: one of all blocks, or one a stage, which may double."""
    names = (
        "hidden_size",
        "hidden_sizes",
        "embed_dim",
        "embed_dims",
        "d_model",
        "dim",
        "n_embd",
        "neck_hidden_sizes",
    )
    found = [getattr(config, name, None) or () for name in names]
    widths = {width for value in found for width in (value if isinstance(value, list | tuple) else [value])}
    doubling = len(getattr(config, "depths", None) or ())
    return frozenset(width * 2**stage for width in widths for stage in range(doubling or 1))


def processed(processor: Callable, inputs: list[str], picture: Any) -> dict:
    """One picture through an image processor of transformers, which raises on anything but RGB."""
    batch = processor(images=picture.convert("RGB"), return_tensors="pt")
    return {key: value[0] for key, value in batch.items() if key in inputs}


def equal_sizes(name: str, prepare: Callable, config: Any) -> Callable:
    """`prepare`, behind a resizing to a square where it leaves pictures of different shapes different."""
    from PIL import Image

    def differ(prepare):
        shapes = [prepare(Image.new("RGB", size))["pixel_values"].shape for size in ((40, 80), (80, 40))]
        return shapes[0] != shapes[1]

    try:
        if not differ(prepare):
            return prepare
        side = getattr(config, "image_size", None) or 224
        squared = functools.partial(square, prepare, side if isinstance(side, int) else max(side))
        if not differ(squared):
            return squared
    except foreign_errors() as error:
        raise UserError(f"the image processor of {name!r} cannot be used: {first_line(error)}") from error
    raise UserError(
        f"the image processor of {name!r} makes pictures of unequal size, which no batch can hold"
    )


def square(prepare: Callable, side: int, picture: Any) -> dict:
    """A picture resized to a square, then prepared."""
    return prepare(picture.resize((side, side)))


def patch_mask(batch: dict) -> Any:
    """NaFlex pads a picture's patches to a fixed number; elsewhere every token stands for something."""
    mask = batch.get("pixel_attention_mask")
    return None if mask is None else mask.bool()


def unmasked(tower: Any, batch: dict) -> Any:
    """A masked autoencoder on whole pictures, their patches in order: left alone it drops three in four."""
    import torch

    tower.config.mask_ratio = 0.0
    order = torch.arange(tower.embeddings.patch_embeddings.num_patches, device=batch["pixel_values"].device)
    return tower(**batch, noise=order.expand(len(batch["pixel_values"]), -1))


def hf_text(name: str, row: Row, seed: int | None) -> Parts:
    """A text encoder of transformers, behind its own tokenizer, padded on the right."""
    tower, blocks, drawn = hf_load(name, functools.partial(hf_tower, row, seed))
    tokenizer = hf_load(name, hf_tokenizer)
    check_vocabulary(name, tower, tokenizer)
    common = {
        "blocks": blocks,
        "widths": hf_widths(tower.config),
        "drawn": drawn,
        "unknown": functools.partial(unknown_share, tokenizer),
    }
    if tower.config.model_type in ("siglip_text_model", "siglip2_text_model"):
        return siglip_text(tower, tokenizer)._replace(**common)
    padding = tokenizer.pad_token_id or 0  # GPT has none; the mask leaves it out
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(token_ids, tokenizer, context(tower, tokenizer)),
        functools.partial(pad, padding),
        mask=lambda batch: batch["attention_mask"].bool(),
        token=text_token(tower.config, tokenizer),
        **common,
    )


def siglip_text(tower: Any, tokenizer: Any) -> Parts:
    """SigLIP's text tower: always 64 tokens and no attention mask, as it was trained; its last token pools.

    That token is nearly always padding, so it is trained on, while the padding before it is not.
    """
    from torch.utils.data import default_collate

    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(fixed_ids, tokenizer, tower.config.max_position_embeddings),
        default_collate,
        mask=functools.partial(words_and_last, tokenizer.pad_token_id),
        token="last",
    )


def hf_audio(name: str, row: Row, seed: int | None) -> Parts:
    """The audio tower of CLAP, behind its own feature extractor."""
    from torch.utils.data import default_collate
    from transformers import AutoFeatureExtractor

    tower, blocks, drawn = hf_load(name, functools.partial(hf_tower, row, seed))
    extractor = hf_load(name, AutoFeatureExtractor.from_pretrained)
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(heard, extractor),
        default_collate,
        token="mean",
        blocks=blocks,
        widths=hf_widths(tower.config),
        drawn=drawn,
    )


def heard(extractor: Callable, sound: tuple[Any, int]) -> dict:
    """One sound, an array and its sampling rate, as CLAP's spectrogram of its first ten seconds.

    The extractor alone would draw a random stretch of a longer sound, and call a random short one long.
    """
    import soxr
    import torch

    frames, rate = sound
    frames = soxr.resample(frames, rate, extractor.sampling_rate)[: extractor.nb_max_samples]
    batch = extractor(frames, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {"input_features": batch["input_features"][0].float(), "is_longer": torch.tensor([False])}
