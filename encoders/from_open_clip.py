"""Image and text towers of open_clip."""

import difflib
import functools
import html
from collections.abc import Callable
from typing import Any, TypedDict

import open_clip
import torch
from jaxtyping import Bool, Int
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torch.utils.data import default_collate

from encoders.blocks import hf_blocks
from encoders.from_timm import Layout, timm_layout
from encoders.hub import OtherRow, from_hub, local_folder
from encoders.inputs import Inputs, as_text, transformed, words, words_and_last, words_and_one_more
from encoders.row import Row
from encoders.tokenizers import unknown_share
from encoders.wrapper import Parts
from plumbing.errors import UserError

Tokenizer = Callable[[list[str]], Int[Tensor, "caption token"]]

Tower = Any  # a module of open_clip's, whose attributes torch types as tensors or modules, whatever they are


def open_clip_name(name: str) -> tuple[str, str, str]:
    """Read a checkpoint's name as (open_clip's name, pretrained tag, hub repository); '' where there is none.

    ViT-L/14-quickgelu and ViT-L-14-quickgelu (OpenAI's weights), ViT-B-32/laion2b_s34b_b79k (model/tag),
    hf-hub:owner/name, local-dir:FOLDER, FOLDER.
    """
    if name.startswith("hf-hub:"):
        return name, "", name.removeprefix("hf-hub:")
    if folder := local_folder(name):
        return f"local-dir:{folder}", "", ""
    model, tag = name.replace("/", "-"), ""
    if model not in open_clip.list_models() and "/" in name:
        model, tag = name.rpartition("/")[0].replace("/", "-"), name.rpartition("/")[2]
    if model not in open_clip.list_models():
        close = difflib.get_close_matches(name.replace("/", "-"), open_clip.list_models(), 4, 0.4)
        raise UserError(
            f"open_clip has no model {name!r}; nearest: {', '.join(close) or 'none'}; "
            "or write hf-hub:OWNER/NAME, local-dir:FOLDER or MODEL/TAG"
        )
    tag = pretrained_tag(name, model, tag)
    return model, tag, str(open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "")).rstrip("/")


def pretrained_tag(name: str, model: str, tag: str) -> str:
    """The tag asked for, else `openai`, else the only one there is; UserError with the choices otherwise."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag in tags:
        return tag
    if not tag and ("openai" in tags or len(tags) == 1):
        return "openai" if "openai" in tags else tags[0]
    choices = ", ".join(f"{model}/{known}" for known in tags) or "none: open_clip has no weights for it"
    raise UserError(f"{name!r} does not say which weights to take; choose one of {choices}")


def load(name: str, seed: int | None) -> tuple[Tower, Callable[[], Tokenizer]]:
    """Build an open_clip model in single precision; also what makes its tokenizer."""
    model, tag, repository = open_clip_name(name)
    options = dict(open_clip.get_pretrained_cfg(model, tag)) if tag else {}
    recipe = {key: options[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in options}
    build = functools.partial(
        open_clip.create_model,
        model,
        pretrained=tag if tag and seed is None else None,
        load_weights=seed is None,
        require_pretrained=seed is None,  # else a folder or repository without weights means random ones
        pretrained_text=False,  # nor fetch a text tower's own weights, which the checkpoint replaces
        force_quick_gelu=bool(options.get("quick_gelu")),  # ViT-B-32 with OpenAI's weights needs it too
        force_preprocess_cfg=recipe,
    )
    tokenizer = functools.partial(open_clip.get_tokenizer, model)
    return from_hub(build, name, repository), lambda: from_hub(tokenizer, name, repository)


def image(name: str, row: Row, seed: int | None) -> Parts:
    """The image tower of an open_clip model: its own ViT, one of timm, or a ResNet."""
    model, _ = load(name, seed)
    keep_only(model, "visual")
    visual = model.visual
    transform: Any = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    layout = image_layout(visual)
    check_token(name, row, layout["token"])
    return Parts(
        model,
        lambda batch: visual(batch["pixel_values"]),
        functools.partial(transformed, transform),
        default_collate,
        **layout,
    )


def keep_only(model: nn.Module, child: str):
    """Drop a model's other children: the tower that is not wanted need not be moved to the device."""
    for name in [name for name, _ in model.named_children() if name != child]:
        delattr(model, name)


def image_layout(visual: Tower) -> Layout:
    """Where an open_clip image tower has its blocks, and what it pools."""
    if hasattr(visual, "trunk"):
        return timm_layout(visual.trunk, "visual.trunk.")
    if hasattr(visual, "layer4"):
        stages = ",".join(f"visual.layer{stage}" for stage in (1, 2, 3, 4))
        return {"blocks": stages, "token": "mean"}
    return {"blocks": "visual.transformer.resblocks", "token": "mean" if visual.pool_type == "avg" else "cls"}


def check_token(name: str, row: Row, pooled: str):
    """Refuse a model that does not pool the token that the row is for."""
    if row.token and row.token != pooled:
        raise OtherRow(f"{name!r} pools {pooled}, not {row.token}")


class Reading(TypedDict, total=False):
    """How a text tower is run, which tokens count, and which one it pools: fields of `Parts`."""

    forward: Callable[[Inputs], object]
    collate: Callable[[list[Inputs]], Inputs]
    mask: Callable[[Inputs], Bool[Tensor, "sample token"]]
    token: str
    blocks: str
    unknown_share: Callable[[list[str]], float]


def text(name: str, row: Row, seed: int | None) -> Parts:
    """The text tower of an open_clip model: CLIP's causal one, or what its pooling says it is."""
    model, tokenizer = load(name, seed)
    del model.visual
    tower = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower apart
    run = getattr(tower, "encode_text", tower)  # CLIP itself, or a tower of its own
    whole = Reading(forward=lambda batch: run(batch["input_ids"]), collate=default_collate)
    reading = whole | (of_transformers(tower) if hasattr(tower, "config") else of_open_clip(tower))
    check_token(name, row, reading["token"])
    tokenize = tokenizer()
    if hasattr(tokenize, "tokenizer"):  # one of transformers, which may not know a word; CLIP's own knows all
        reading |= Reading(unknown_share=functools.partial(unknown_share, tokenize.tokenizer))
    return Parts(model, preprocess=functools.partial(token_ids, tokenize), **reading)


def of_transformers(tower: Tower) -> Reading:
    """A text tower that is a model of transformers behind a pooler of open_clip's."""
    cls = type(tower.pooler).__name__.startswith("Cls")
    mask = functools.partial(words, tower.config.pad_token_id)
    return Reading(mask=mask, token="cls" if cls else "mean", blocks=hf_blocks(tower.transformer))


def of_open_clip(tower: Tower) -> Reading:
    """A text tower of open_clip's own; a causal one is run no further than the longest caption's end."""
    found = Reading(blocks="transformer.resblocks")
    pool = getattr(tower, "text_pool_type", None) or tower.pool_type
    if getattr(tower, "cls_emb", None) is not None:  # CoCa appends the token that it pools
        return found | Reading(mask=functools.partial(words_and_one_more, tower.pad_id), token="last")
    if pool not in ("argmax", "eos") or tower.attn_mask is None or getattr(tower, "use_pad_mask", False):
        mask = functools.partial(words_and_last, getattr(tower, "pad_id", 0))
        return found | Reading(mask=mask, token="cls" if pool == "first" else "last")
    end = None if pool == "argmax" else getattr(tower, "text_eos_id", None) or tower.eos_id
    return found | Reading(
        forward=lambda batch: causal_text(tower, batch["input_ids"]),
        collate=functools.partial(crop_to_end_of_text, end),
        mask=functools.partial(up_to_end_of_text, end),
        token="end_of_text",
    )


def token_ids(tokenizer: Tokenizer, caption: str) -> Inputs:
    """One caption as token ids, padded to the context length."""
    special = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip's own, or around one of transformers
    names = getattr(special, "all_special_tokens", ["<start_of_text>", "<end_of_text>"])
    plain = html.unescape(html.unescape(caption))  # as open_clip itself does
    return {"input_ids": tokenizer([as_text(names, plain)])[0]}


def end_of_text(ids: Int[Tensor, "sample token"], end: int | None) -> Int[Tensor, " sample"]:
    """Where captions end: at the first id `end`, or, as in CLIP, at the highest id."""
    return ids.argmax(1) if end is None else (ids == end).int().argmax(1)


def crop_to_end_of_text(end: int | None, items: list[Inputs]) -> Inputs:
    """Stack captions up to the longest end of text: a causal model puts nothing of use behind it."""
    ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": ids[:, : int(end_of_text(ids, end).max()) + 1]}


def up_to_end_of_text(end: int | None, batch: Inputs) -> Bool[Tensor, "sample token"]:
    """True from the start of text to the end of text, both included."""
    ids = batch["input_ids"]
    return torch.arange(ids.shape[1], device=ids.device) <= end_of_text(ids, end)[:, None]


def causal_text(tower: Tower, ids: Int[Tensor, "sample token"]) -> Tensor:
    """CLIP's text blocks on captions shorter than the context, which open_clip's own forward refuses."""
    n_tokens = ids.shape[1]
    embedded = tower.token_embedding(ids) + tower.positional_embedding[:n_tokens]
    return tower.transformer(embedded, attn_mask=tower.attn_mask[:n_tokens, :n_tokens])
