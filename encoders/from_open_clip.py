"""Image and text towers of open_clip."""

import difflib
import functools
import html
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Int

from encoders.from_timm import timm_layout
from encoders.hub import from_hub, local_folder
from encoders.inputs import as_text, transformed, words, words_and_last, words_and_one_more
from encoders.wrapper import Parts, Row, hf_blocks
from plumbing.errors import UserError


def open_clip_name(name: str) -> tuple[str, str, str]:
    """Read a checkpoint's name as (open_clip's name, pretrained tag, hub repository); '' where there is none.

    ViT-L/14-quickgelu and ViT-L-14-quickgelu (OpenAI's weights), ViT-B-32/laion2b_s34b_b79k (model/tag),
    hf-hub:owner/name, local-dir:FOLDER, FOLDER.
    """
    import open_clip

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
    return model, tag, open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rstrip("/")


def pretrained_tag(name: str, model: str, tag: str) -> str:
    """The tag asked for, else `openai`, else the only one there is; UserError with the choices otherwise."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag in tags:
        return tag
    if not tag and ("openai" in tags or len(tags) == 1):
        return "openai" if "openai" in tags else tags[0]
    choices = ", ".join(f"{model}/{known}" for known in tags) or "none: open_clip has no weights for it"
    raise UserError(f"{name!r} does not say which weights to take; choose one of {choices}")


def open_clip_model(name: str, seed: int | None) -> tuple[Any, Callable[[], Any]]:
    """Build an open_clip model in single precision; also what makes its tokenizer."""
    import open_clip

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
        force_quick_gelu=options.get("quick_gelu", False),  # ViT-B-32 with OpenAI's weights needs it too
        force_preprocess_cfg=recipe,
    )
    tokenizer = functools.partial(open_clip.get_tokenizer, model)
    return from_hub(build, name, repository), lambda: from_hub(tokenizer, name, repository)


def open_clip_image(name: str, row: Row, seed: int | None) -> Parts:
    """The image tower of an open_clip model: its own ViT, one of timm, or a ResNet."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torch.utils.data import default_collate

    model, _ = open_clip_model(name, seed)
    keep_only(model, "visual")
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return Parts(
        model,
        lambda batch: model.visual(batch["pixel_values"]),
        functools.partial(transformed, transform),
        default_collate,
        **same_token(name, row, open_clip_layout(model.visual)),
    )


def keep_only(model: Any, child: str):
    """Drop a model's other children: the tower that is not wanted need not be moved to the device."""
    for name in [name for name, _ in model.named_children() if name != child]:
        delattr(model, name)


def open_clip_layout(visual: Any) -> dict:
    """Where an open_clip image tower has its blocks, and what it pools."""
    if hasattr(visual, "trunk"):
        return timm_layout(visual.trunk, "visual.trunk.")
    if hasattr(visual, "layer4"):
        stages = ",".join(f"visual.layer{stage}" for stage in (1, 2, 3, 4))
        return {"blocks": stages, "token": "mean"}
    return {"blocks": "visual.transformer.resblocks", "token": "mean" if visual.pool_type == "avg" else "cls"}


def open_clip_text(name: str, row: Row, seed: int | None) -> Parts:
    """The text tower of an open_clip model: CLIP's causal one, or what its pooling says it is."""
    model, tokenizer = open_clip_model(name, seed)
    del model.visual
    text = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower apart
    reading = same_token(name, row, open_clip_reading(text))
    return Parts(model, preprocess=functools.partial(open_clip_ids, tokenizer()), **reading)


def same_token(name: str, row: Row, layout: dict) -> dict:
    """`layout` as it is; UserError where the model does not pool the token that the row is for."""
    if row.token and row.token != layout["token"]:
        generic = "OpenClipVision" if row.modality == "image" else "OpenClipText"
        raise UserError(f"{name!r} pools {layout['token']}, not {row.token}; use --model {generic}")
    return layout


def open_clip_reading(text: Any) -> dict:
    """How to run an open_clip text tower, which of its tokens count, and which one it pools."""
    from torch.utils.data import default_collate

    run = getattr(text, "encode_text", text)  # CLIP itself, or a tower of its own
    whole = {"forward": lambda batch: run(batch["input_ids"]), "collate": default_collate}
    if hasattr(text, "config"):  # a model of transformers
        cls = type(text.pooler).__name__.startswith("Cls")
        mask = functools.partial(words, text.config.pad_token_id)
        return whole | {
            "mask": mask,
            "token": "cls" if cls else "mean",
            "blocks": hf_blocks(text.transformer),
        }
    whole |= {"blocks": "transformer.resblocks"}
    pool = getattr(text, "text_pool_type", None) or text.pool_type
    if getattr(text, "cls_emb", None) is not None:  # CoCa appends the token that it pools
        return whole | {"mask": functools.partial(words_and_one_more, text.pad_id), "token": "last"}
    if pool not in ("argmax", "eos") or text.attn_mask is None or getattr(text, "use_pad_mask", False):
        mask = functools.partial(words_and_last, getattr(text, "pad_id", 0))
        return whole | {"mask": mask, "token": "cls" if pool == "first" else "last"}
    end = None if pool == "argmax" else getattr(text, "text_eos_id", None) or text.eos_id
    return whole | {
        "forward": lambda batch: causal_text(text, batch["input_ids"]),
        "collate": functools.partial(crop_to_end_of_text, end),
        "mask": functools.partial(up_to_end_of_text, end),
        "token": "end_of_text",
    }


def open_clip_ids(tokenizer: Callable, caption: str) -> dict:
    """One caption as token ids, padded to the context length."""
    special = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip's own, or around one of transformers
    names = getattr(special, "all_special_tokens", ["<start_of_text>", "<end_of_text>"])
    plain = html.unescape(html.unescape(caption))  # as open_clip itself does
    return {"input_ids": tokenizer([as_text(names, plain)])[0]}


def end_of_text(ids: Int[Any, "sample token"], end: int | None) -> Int[Any, " sample"]:
    """Where captions end: at the first id `end`, or, as in CLIP, at the highest id."""
    return ids.argmax(1) if end is None else (ids == end).int().argmax(1)


def crop_to_end_of_text(end: int | None, items: list) -> dict:
    """Stack captions up to the longest end of text: a causal model puts nothing of use behind it."""
    import torch

    ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": ids[:, : int(end_of_text(ids, end).max()) + 1]}


def up_to_end_of_text(end: int | None, batch: dict) -> Bool[Any, "sample token"]:
    """True from the start of text to the end of text, both included."""
    import torch

    ids = batch["input_ids"]
    return torch.arange(ids.shape[1], device=ids.device) <= end_of_text(ids, end)[:, None]


def causal_text(text: Any, ids: Int[Any, "sample token"]) -> Any:
    """CLIP's text blocks on captions shorter than the context, which open_clip's own forward refuses."""
    n_tokens = ids.shape[1]
    embedded = text.token_embedding(ids) + text.positional_embedding[:n_tokens]
    return text.transformer(embedded, attn_mask=text.attn_mask[:n_tokens, :n_tokens])
