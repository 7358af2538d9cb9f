"""Encoders of transformers: image, text and audio towers, each behind its own processor or tokenizer."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    BaseImageProcessor,
    ClapFeatureExtractor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from encoders import tokenizers
from encoders.hub import foreign_errors
from encoders.inputs import Inputs, Sound, words_and_last
from encoders.row import Row
from encoders.towers import hf_load, load_tower, read_by, widths_of
from encoders.wrapper import Parts
from plumbing.errors import UserError, first_line


def image(name: str, row: Row, seed: int | None) -> Parts:
    """An image encoder of transformers, behind its own image processor."""
    tower, blocks, drawn = load_tower(name, row, seed)
    processor = hf_load(name, AutoImageProcessor.from_pretrained)
    # what is put before the patches; a head's own cls_token (AIMv2) is a query and no token of the blocks
    special = {path.split("embeddings.")[-1] for path, _ in tower.named_parameters() if "embeddings." in path}
    has_cls = bool(special & {"cls_token", "class_embedding"})
    registers = (getattr(tower.config, "num_register_tokens", 0) or 0) + ("distillation_token" in special)
    masks = tower.config.model_type == "vit_mae"
    return Parts(
        tower,
        functools.partial(unmasked, tower) if masks else lambda batch: tower(**batch),
        equal_sizes(name, functools.partial(processed, processor, read_by(tower)), tower.config),
        default_collate,
        mask=patch_mask,
        registers=slice(int(has_cls), int(has_cls) + registers),
        token="cls" if has_cls else "mean",
        blocks=blocks,
        widths=widths_of(tower.config),
        drawn=drawn,
    )


def processed(processor: BaseImageProcessor, names: list[str], picture: Image.Image) -> Inputs:
    """The inputs of these names of one picture: the processors of transformers raise on anything but RGB."""
    batch = processor(images=picture.convert("RGB"), return_tensors="pt")
    return {key: value[0] for key, value in batch.items() if key in names}


Prepare = Callable[[Image.Image], Inputs]


def equal_sizes(name: str, prepare: Prepare, config: PreTrainedConfig) -> Prepare:
    """`prepare`, behind a resizing to a square where it leaves pictures of different shapes different."""
    side = getattr(config, "image_size", None) or 224
    squared = functools.partial(square, prepare, side if isinstance(side, int) else max(side))
    try:
        for candidate in (prepare, squared):
            if not differ(candidate):
                return candidate
    except foreign_errors() as error:
        raise UserError(f"the image processor of {name!r} cannot be used: {first_line(error)}") from error
    raise UserError(
        f"the image processor of {name!r} makes pictures of unequal size, which no batch can hold"
    )


def differ(prepare: Prepare) -> bool:
    """Whether a wide picture and a high one become tensors of different shapes."""
    shapes = [prepare(Image.new("RGB", size))["pixel_values"].shape for size in ((40, 80), (80, 40))]
    return shapes[0] != shapes[1]


def square(prepare: Prepare, side: int, picture: Image.Image) -> Inputs:
    """A picture resized to a square, then prepared."""
    return prepare(picture.resize((side, side)))


def patch_mask(batch: Inputs) -> Bool[Tensor, "sample token"] | None:
    """NaFlex pads a picture's patches to a fixed number; elsewhere every token stands for something."""
    mask = batch.get("pixel_attention_mask")
    return None if mask is None else mask.bool()


def unmasked(tower: Any, batch: Inputs) -> object:
    """A masked autoencoder on whole pictures, their patches in order: left alone it drops three in four."""
    tower.config.mask_ratio = 0.0
    order = torch.arange(tower.embeddings.patch_embeddings.num_patches, device=batch["pixel_values"].device)
    return tower(**batch, noise=order.expand(len(batch["pixel_values"]), -1))


def text(name: str, row: Row, seed: int | None) -> Parts:
    """A text encoder of transformers, behind its own tokenizer, padded on the right."""
    tower, blocks, drawn = load_tower(name, row, seed)
    tokenizer = hf_load(name, tokenizers.load)
    tokenizers.check_vocabulary(name, tower, tokenizer)
    siglip = tower.config.model_type in ("siglip_text_model", "siglip2_text_model")
    parts = siglip_text(tower, tokenizer) if siglip else padded_text(tower, tokenizer)
    unknown = functools.partial(tokenizers.unknown_share, tokenizer)
    return parts._replace(blocks=blocks, widths=widths_of(tower.config), drawn=drawn, unknown_share=unknown)


def padded_text(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Parts:
    """A text tower that reads its captions with an attention mask."""
    padding = tokenizer.pad_token_id or 0  # GPT has none; the mask leaves it out
    longest = tokenizers.context(tower, tokenizer)
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(tokenizers.token_ids, tokenizer, longest),
        functools.partial(tokenizers.pad, padding),
        mask=lambda batch: batch["attention_mask"].bool(),
        token=tokenizers.text_token(tower.config, tokenizer),
    )


def siglip_text(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Parts:
    """SigLIP's text tower: always 64 tokens and no attention mask, as it was trained; its last token pools.

    That token is nearly always padding, so it is trained on, while the padding before it is not.
    """
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(tokenizers.fixed_ids, tokenizer, tower.config.max_position_embeddings),
        default_collate,
        mask=functools.partial(words_and_last, tokenizer.pad_token_id),
        token="last",
    )


def audio(name: str, row: Row, seed: int | None) -> Parts:
    """The audio tower of CLAP, behind its own feature extractor."""
    tower, blocks, drawn = load_tower(name, row, seed)
    extractor = hf_load(name, AutoFeatureExtractor.from_pretrained)
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(heard, extractor),
        default_collate,
        token="mean",
        blocks=blocks,
        widths=widths_of(tower.config),
        drawn=drawn,
    )


def heard(extractor: ClapFeatureExtractor, sound: Sound) -> Inputs:
    """One sound as CLAP's spectrogram of its first ten seconds.

    The extractor alone would draw a random stretch of a longer sound, and call a random short one long.
    """
    import soxr

    frames, rate = sound
    frames = soxr.resample(frames, rate, extractor.sampling_rate)[: extractor.nb_max_samples]
    batch = extractor(frames, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {"input_features": batch["input_features"][0].float(), "is_longer": torch.tensor([False])}
