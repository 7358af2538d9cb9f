"""The encoders: a literal table of them, and one wrapper that hands out the activations of their blocks.

To add an encoder, add a row to REGISTRY and, where none of the loaders fits, a function that returns
its `Parts`. `uv run wrappedmodels.py` prints the table.
"""

import contextlib
import difflib
import functools
import hashlib
import html
import inspect
import itertools
import logging
import os
import re
import sys
import time
from argparse import ArgumentTypeError as UserError
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

ROOT = Path(__file__).resolve().parent
LFS = b"version https://git-lfs"  # how the file begins that Git keeps in place of a large one


class Activations(NamedTuple):
    """What the wanted blocks put out for a batch, and which of its tokens count."""

    layers: dict[int, Float[Any, "sample token d_in"]]
    mask: Bool[Any, "sample token"]  # True: a token to train on; never padding, never a register
    pool: Float[Any, "sample token"]  # sums to 1 per sample: one-hot at the recorded token, or 1/n of a mean


def no_padding(batch: dict) -> None:
    """The mask of an encoder whose items all have the same tokens."""


class Parts(NamedTuple):
    """What a loader knows of one encoder."""

    tower: Any  # the torch module that holds the blocks
    forward: Callable[[dict], Any]  # runs the tower over a batch; what it returns is not looked at
    preprocess: Callable[[Any], dict]  # one item to tensors; picklable
    collate: Callable[[list], dict]  # those of several items to a padded batch; picklable
    mask: Callable[[dict], Any] = no_padding  # batch -> Bool [sample token], or None: every token counts
    registers: slice = slice(0)  # tokens that stand for nothing in the sample
    channels_last: bool = False  # how to read a block's 4-D output
    token: str = ""  # what the encoder itself pools, and its blocks: where the row leaves them open
    blocks: str = ""
    widths: frozenset[int] = frozenset()  # those that the model declares; empty: it does not say
    drawn: Mapping[str, Any] = MappingProxyType(
        {}
    )  # parameters and buffers that the checkpoint lacks, drawn at random
    unknown: Callable[[list[str]], float] | None = None  # captions -> share of tokens that are unknown


class Row(NamedTuple):
    """One line of the registry."""

    modality: str
    flag: str  # the family's own spelling of --checkpoint
    checkpoint: str  # the default; empty: the user must name one
    loader: Callable[[str, "Row", int | None], Parts]
    blocks: str  # dotted path of the list to hook; empty: asked of the model
    token: str  # what is recorded of a sample: a key of TOKENS, or "mean"; empty: asked of the model
    note: str = ""
    types: tuple[str, ...] = ()  # the transformers model types that belong here; empty: any
    checkpoints: tuple[str, ...] = ()  # the paper's, by their exact spelling
    expansion_factor: int = 8
    top_k: int = 32
    random_weights: int | None = None  # a seed: draw the weights instead of loading them


# --------------------------------------------------------------------------------------------------------
# tokens: where in a sample the recorded one stands


def first_token(mask: Bool[Any, "sample token"]) -> Int[Any, " sample"]:
    """Position 0: the CLS token where there is one."""
    return mask.new_zeros(len(mask), dtype=int)


def last_token(mask: Bool[Any, "sample token"]) -> Int[Any, " sample"]:
    """The last position that is no padding: the end of text of CLIP, the last word of a causal model."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


TOKENS = {"cls": first_token, "first": first_token, "end_of_text": last_token, "last": last_token}


def pool_weights(token: str, mask: Bool[Any, "sample token"]) -> Float[Any, "sample token"]:
    """One weight a token, summing to 1 over each sample: one-hot at the recorded token, or its mean."""
    if token == "mean":
        return mask / mask.sum(1, keepdim=True)
    return mask.new_zeros(mask.shape).float().scatter(1, TOKENS[token](mask)[:, None], 1.0)


# --------------------------------------------------------------------------------------------------------
# the hub: the cache first, the network only where it answers


def from_hub(build: Callable[[], Any], name: str, repository: str) -> Any:
    """Call `build` on what is cached; only where that fails and the hub answers, let it download.

    The hub's clients retry a dead network for 20 seconds a file and ask it even for what is cached.
    An empty `repository` means that nothing can be downloaded.
    Raises UserError where the name is unknown, neither cached nor reachable, or its files do not load.
    """
    from huggingface_hub import constants

    broken = foreign_errors()
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return build()
    except broken as error:
        missing = error
    finally:
        constants.HF_HUB_OFFLINE = offline
    if not repository:
        refuse_pointers(name.removeprefix("local-dir:"))
        raise UserError(f"{name!r} cannot be loaded: {first_line(missing)}") from missing
    reach(name, repository, offline, missing)
    try:
        return build()
    except broken as error:
        raise UserError(f"{name!r} cannot be loaded: {first_line(error)}") from error


def foreign_errors() -> tuple[type[Exception], ...]:
    """What a library raises on files that it cannot use: damaged, of another version, or of a missing package."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    of_values = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
    return (*of_values, AssertionError, ImportError, SafetensorError, UnpicklingError, StrictDataclassError)


def reach(name: str, repository: str, offline: bool, missing: Exception):
    """Ask the hub once, for at most five seconds, whether it has `repository`; UserError where it has not."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    fetch = f"fetch it where there is a network with `hf download {repository}`"
    if offline:
        # what is merely absent the libraries raise as one of these; else a file is there and does not load
        cause = "" if isinstance(missing, OSError | RuntimeError) else f" ({first_line(missing)})"
        raise UserError(
            f"{name!r} is not in the Hugging Face cache{cause} and HF_HUB_OFFLINE is set; "
            f"{nearest(name)}{fetch}"
        )
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=5)
    except EntryNotFoundError:
        return  # the repository is there, and keeps its configuration under another name
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{name!r} is neither a folder nor a model that the Hugging Face hub shows you; {nearest(name)}"
            "for a private or gated one run `hf auth login`"
        ) from error
    except Exception as error:  # whatever the network raised
        raise UserError(
            f"{name!r} is not in the Hugging Face cache and the hub does not answer "
            f"({first_line(error)}); {nearest(name)}{fetch}"
        ) from error


def refuse_pointers(folder: str, patterns: tuple[str, ...] = ("*",)):
    """UserError where a folder holds a pointer of Git LFS in place of a file of one of these names."""
    for file in (
        file for pattern in patterns for file in sorted(Path(folder).glob(pattern)) if file.is_file()
    ):
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise UserError(f"{file} is a Git LFS pointer, not the file: run `git lfs pull` in {folder}")


def nearest(name: str) -> str:
    """'did you mean A, B? ' of the paper's checkpoints, or nothing."""
    known = sorted({checkpoint for row in REGISTRY.values() for checkpoint in row.checkpoints} | set(DINOV2))
    close = [other for other in difflib.get_close_matches(name, known, 3, 0.9) if other != name]
    return f"did you mean {', '.join(close)}? " if close else ""


def first_line(error: Exception) -> str:
    """The first line of an error's message (two, where the first only announces), for a message of one line."""
    kind = type(error).__name__
    lines = (str(error).strip() or kind).splitlines()
    said = " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])[:200]
    if "ignore_mismatched_sizes" in said:  # transformers' advice on how to draw them at random
        said = "its weights have other shapes than its configuration says"
    return f"{kind}: {said}" if isinstance(error, LookupError | TypeError | AttributeError) else said


@contextlib.contextmanager
def quiet():
    """Without the libraries' remarks on weights that nothing reads; what matters is raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def hub_commit(repository: str) -> str:
    """The commit at which a repository of the hub lies in the cache, or ''."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "open_clip_config.json"):
        with contextlib.suppress(ValueError):  # no repository's name
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found).parent.name
    return ""


def local_folder(name: str) -> str:
    """The folder that `name` (perhaps with `local-dir:`) is, seen from here or from the repository; or ''."""
    path = name.removeprefix("local-dir:")
    folder = next((folder for folder in (Path(path), ROOT / path) if folder.is_dir()), None)
    if folder is None and name != path:
        raise UserError(f"there is no folder {path!r}; write local-dir:FOLDER of an open_clip model")
    return str(folder or "")


# --------------------------------------------------------------------------------------------------------
# open_clip


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


def transformed(transform: Callable, picture: Any) -> dict:
    """One picture through a torchvision transform."""
    return {"pixel_values": transform(picture.convert("RGB"))}


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


def words(padding: int, batch: dict) -> Bool[Any, "sample token"]:
    """True at every token that is no padding."""
    return batch["input_ids"] != padding


def words_and_last(padding: int, batch: dict) -> Bool[Any, "sample token"]:
    """True at every token that is no padding, and at the last, which is the one that is pooled."""
    mask = words(padding, batch)
    mask[:, -1] = True
    return mask


def words_and_one_more(padding: int, batch: dict) -> Bool[Any, "sample token"]:
    """True at every token that is no padding, and at one that the model appends."""
    from torch.nn.functional import pad

    return pad(words(padding, batch), (0, 1), value=True)


# --------------------------------------------------------------------------------------------------------
# timm


def timm_image(name: str, row: Row, seed: int | None) -> Parts:
    """An image encoder of timm."""
    import timm
    from timm.data import create_transform, resolve_model_data_config
    from torch.utils.data import default_collate

    source, repository = timm_name(name)
    tower = from_hub(functools.partial(timm.create_model, source, pretrained=seed is None), name, repository)
    transform = create_transform(**resolve_model_data_config(tower), is_training=False)
    return Parts(
        tower,
        lambda batch: tower(batch["pixel_values"]),
        functools.partial(transformed, transform),
        default_collate,
        **timm_layout(tower, "", row.blocks),
    )


def timm_name(name: str) -> tuple[str, str]:
    """Read a checkpoint's name as (timm's name, hub repository): MODEL[.TAG], OWNER/NAME, FOLDER."""
    import timm

    if folder := local_folder(name):
        return f"local-dir:{folder}", ""
    if "/" in name:
        name = name.removeprefix("hf-hub:")
        return f"hf-hub:{name}", name
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 4, 0.8)
        raise UserError(
            f"timm has no model {name!r}; nearest: {', '.join(close) or 'none'}; "
            "or write OWNER/NAME of the hub or local-dir:FOLDER"
        )
    settings = timm.get_pretrained_cfg(name)
    return name, (settings and settings.hf_hub_id) or ""


def timm_layout(trunk: Any, prefix: str = "", blocks: str = "") -> dict:
    """Where a timm model has its blocks, as it says itself, and which tokens come before the patches."""
    has_cls = getattr(trunk, "cls_token", None) is not None
    pools_cls = has_cls and getattr(trunk, "global_pool", "token") in ("token", "", None)
    return {
        "blocks": blocks or timm_blocks(trunk, prefix),
        "token": "cls" if pools_cls else "mean",
        "registers": slice(int(has_cls), getattr(trunk, "num_prefix_tokens", 0) or 0),
        "channels_last": getattr(trunk, "output_fmt", "NCHW") == "NHWC",
        "widths": timm_widths(trunk),
    }


def timm_widths(trunk: Any) -> frozenset[int]:
    """The widths that a timm model declares: of its features, and of its tokens."""
    widths = {info["num_chs"] for info in getattr(trunk, "feature_info", None) or []}
    return frozenset(
        widths
        | {
            width
            for name in ("embed_dim", "num_features")
            if isinstance(width := getattr(trunk, name, None), int)
        }
    )


def timm_blocks(trunk: Any, prefix: str) -> str:
    """The modules that timm lists as a model's features, without a stem's lone activation."""
    modules = dict(trunk.named_modules())
    names = [info["module"] for info in getattr(trunk, "feature_info", None) or []]
    names = [name for name in names if name in modules and next(modules[name].parameters(), None) is not None]
    names = list(dict.fromkeys(names))  # CoaT lists one module for three stages
    if not names:
        raise UserError(f"timm does not say where the blocks of this model are; {choose_blocks(trunk)}")
    parent = names[0].rpartition(".")[0]
    if names == [f"{parent}.{number}" for number in range(len(names))]:
        return prefix + parent
    return ",".join(prefix + name for name in names)


# --------------------------------------------------------------------------------------------------------
# transformers

# torch.hub's names of DINOv2, without torch.hub: it runs code from the network.
DINOV2 = {
    f"dinov2_vit{letter}14{suffix}": f"facebook/dinov2-{'with-registers-' if suffix else ''}{size}"
    for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    for suffix in ("", "_reg")
}
END_OF_TEXT = {  # the types of text towers that sum a caption up in the token that ends it
    f"{kind}_text_model"
    for kind in ("aimv2", "clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit", "xclip")
}
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


def check_type(name: str, found: str, row: Row):
    """Refuse a checkpoint of another family, and say which row takes it."""
    if row.types and found not in row.types:
        rows = [key for key, other in REGISTRY.items() if found in other.types and not key.startswith("Demo")]
        raise UserError(
            f"{name!r} is a {found!r} model, not {' or '.join(row.types)}; "
            f"use {' or '.join(f'--model {key}' for key in rows or ('HFVision', 'HFText'))}"
        )


def hf_blocks(tower: Any) -> str:
    """The path of the one outer ModuleList that is as long as the configuration has layers or stages."""
    from torch.nn import ModuleList

    length = getattr(tower.config, "num_hidden_layers", None) or len(
        getattr(tower.config, "depths", None) or ()
    )
    lists = {path: found for path, found in block_lists(tower).items() if isinstance(found, ModuleList)}
    found = [path for path, blocks in lists.items() if len(blocks) == length > 0]
    found = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if not length:
        raise UserError(
            f"the configuration of this {type(tower).__name__} does not say how many blocks it has; "
            f"{choose_blocks(tower)}"
        )
    if len(found) != 1:
        raise UserError(
            f"{len(found)} lists of modules are as long as the {length} layers of the configuration of this "
            f"{type(tower).__name__}; {choose_blocks(tower)}"
        )
    return found[0]


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


def read_by(tower: Any) -> list[str]:
    """The names of a model's inputs: a processor may put out more."""
    return list(inspect.signature(tower.forward).parameters)


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


def hf_tokenizer(name: str) -> Any:
    """A tokenizer of transformers; OSError where it has no words.

    Where the files of the vocabulary are missing, transformers makes one of the special tokens alone, which
    reads all captions alike.
    """
    from transformers import AutoTokenizer

    refuse_pointers(name, ("*.json", "*.txt"))
    tokenizer = AutoTokenizer.from_pretrained(name)
    try:
        tokenizer("a 猫 [qzx]")
    except (
        Exception
    ) as error:  # tokenizers raises nothing more special, of a vocabulary without its unknown word
        raise ValueError(f"its tokenizer reads no caption: {first_line(error)}") from error
    if len(tokenizer) - len(tokenizer.all_special_ids) < 2:
        raise FileNotFoundError(f"the tokenizer of {name} has no vocabulary")
    return tokenizer


def check_vocabulary(name: str, tower: Any, tokenizer: Any):
    """Refuse a tokenizer with words that the model has no embedding of; special tokens are read only where used."""
    try:
        n_embedded = getattr(tower.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE reads characters by their hashes
        n_embedded = None
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    highest = max(words | set(tokenizer("a").input_ids))
    if n_embedded and highest >= n_embedded:
        raise UserError(
            f"the tokenizer of {name!r} has a word of number {highest}, but the model embeds {n_embedded}: "
            "they are not of one checkpoint"
        )


def unknown_share(tokenizer: Any, captions: list[str]) -> float:
    """Which share of the captions' tokens is the unknown one; a caption of no token but special ones is unknown."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    words = [[i for i in ids if i not in special] for ids in tokenizer(captions).input_ids]
    unknown = sum(ids.count(tokenizer.unk_token_id) if ids else 1 for ids in words)
    return unknown / max(1, sum(len(ids) or 1 for ids in words))


def as_text(special: list[str], caption: str) -> str:
    """A caption whose spelled special tokens ("[SEP]") are read as text: a space breaks them up."""
    names = [re.escape(token) for token in special if len(token) > 2 and token.lower() in caption.lower()]
    if not names:
        return caption
    return re.sub(
        "|".join(names), lambda found: f"{found[0][0]} {found[0][1:]}", caption, flags=re.IGNORECASE
    )


def context(tower: Any, tokenizer: Any) -> int:
    """The longest caption in tokens: RoBERTa and its kin count positions from behind the padding's id."""
    positions = getattr(tower.config, "max_position_embeddings", None) or 0
    positions = positions if positions > 0 else 512  # T5 and XLNet have relative positions
    tables = [module for path, module in tower.named_modules() if path.endswith("position_embeddings")]
    first = max([getattr(table, "padding_idx", None) or -1 for table in tables], default=-1) + 1
    return min(tokenizer.model_max_length, positions - first)


def text_token(config: Any, tokenizer: Any) -> str:
    """Which token a text encoder sums a caption up in: the last of a causal model, CLS, or none."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if kind in END_OF_TEXT:
        return "end_of_text"
    if config.is_encoder_decoder:
        return "mean"
    masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked:
        return "last"
    ids = tokenizer("a").input_ids
    if tokenizer.cls_token_id in ids:
        return "cls" if ids[0] == tokenizer.cls_token_id else "last"  # XLNet's is behind the words
    return "mean"


def token_ids(tokenizer: Any, longest: int, caption: str) -> dict:
    """One caption as token ids, cut at `longest`; an empty one is the token that ends or begins a text."""
    import torch

    caption = as_text(tokenizer.all_special_tokens, caption)
    ids = tokenizer(caption, truncation=True, max_length=longest).input_ids
    return {"input_ids": torch.tensor(ids or [tokenizer.eos_token_id or tokenizer.bos_token_id or 0])}


def pad(padding: int, items: list) -> dict:
    """Captions to the length of the longest, padded on the right, with their attention mask."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [item["input_ids"] for item in items]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=padding), "attention_mask": mask}


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


def fixed_ids(tokenizer: Callable, length: int, caption: str) -> dict:
    """One caption as exactly `length` token ids, padded on the right.

    SigLIP was trained on lower case, which the tokenizer that its fixed-size checkpoints name does not make.
    """
    options = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
    caption = as_text(tokenizer.all_special_tokens, caption.lower())
    return {"input_ids": tokenizer([caption], return_tensors="pt", **options).input_ids[0]}


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


# --------------------------------------------------------------------------------------------------------
# the table

CLIP = (
    "ViT-B/32-quickgelu",
    "ViT-L/14-quickgelu",
    "hf-hub:apple/DFN2B-CLIP-ViT-B-16",
    "hf-hub:apple/DFN2B-CLIP-ViT-L-14",
)
SIGLIP2 = ("google/siglip2-base-patch16-224", "google/siglip2-large-patch16-384")

REGISTRY: dict[str, Row] = {
    "ClipVision": Row(
        "image",
        "--clip_model_name",
        "ViT-L/14-quickgelu",
        open_clip_image,
        "visual.transformer.resblocks",
        "cls",
        "OpenAI's CLIP and DFN: a name or MODEL/TAG of open_clip, hf-hub:OWNER/NAME or local-dir:FOLDER",
        checkpoints=CLIP,
    ),
    "ClipText": Row(
        "text",
        "--clip_model_name",
        "ViT-L/14-quickgelu",
        open_clip_text,
        "transformer.resblocks",
        "end_of_text",
        "causal: token 0 is the same for every caption",
        checkpoints=CLIP,
    ),
    "SigLIP2Vision": Row(
        "image",
        "--siglip2_model_name",
        "google/siglip2-large-patch16-384",
        hf_image,
        "encoder.layers",
        "mean",
        "no CLS: the codes of the patches are averaged; NaFlex checkpoints too",
        types=("siglip", "siglip2"),
        checkpoints=SIGLIP2,
    ),
    "SiglipText": Row(
        "text",
        "--siglip2_model_name",
        "google/siglip2-large-patch16-384",
        hf_text,
        "encoder.layers",
        "last",
        "always 64 tokens, no attention mask",
        types=("siglip", "siglip2"),
        checkpoints=SIGLIP2,
    ),
    "ViT": Row(
        "image",
        "--vit_model_name",
        "google/vit-large-patch16-384",
        hf_image,
        "layers",
        "cls",
        types=("vit",),
        checkpoints=("google/vit-base-patch16-224", "google/vit-large-patch16-384"),
    ),
    "DinoV2": Row(
        "image",
        "--dino_model_name",
        "dinov2_vitl14",
        hf_image,
        "encoder.layer",
        "cls",
        "dinov2_vit{s,b,l,g}14[_reg] are names of facebook/dinov2-…; registers are left out",
        types=("dinov2", "dinov2_with_registers"),
        checkpoints=("dinov2_vitb14", "dinov2_vitl14"),
    ),
    "Bert": Row(
        "text",
        "--bert_model_name",
        "bert-large-uncased",
        hf_text,
        "encoder.layer",
        "cls",
        types=("bert",),
        checkpoints=("bert-base-uncased", "bert-large-uncased"),
    ),
    "Deberta": Row(
        "text",
        "--deberta_model_name",
        "microsoft/deberta-large",
        hf_text,
        "encoder.layer",
        "cls",
        types=("deberta",),
        checkpoints=("microsoft/deberta-base", "microsoft/deberta-large"),
    ),
    "ClapAudio": Row(
        "audio",
        "",
        "laion/clap-htsat-unfused",
        hf_audio,
        "audio_encoder.layers.3.blocks",
        "mean",
        "the last of four stages; the first ten seconds of a sound",
        types=("clap",),
    ),
    "ClapText": Row("text", "", "laion/clap-htsat-unfused", hf_text, "encoder.layer", "cls", types=("clap",)),
    "HFVision": Row("image", "", "", hf_image, "", "", "any image encoder of transformers"),
    "HFText": Row(
        "text",
        "",
        "",
        hf_text,
        "",
        "",
        "any of transformers: encoder, decoder (its last token), or the encoder of both",
    ),
    "TimmVision": Row(
        "image", "", "", timm_image, "", "", "any model of timm: MODEL.TAG, OWNER/NAME or FOLDER"
    ),
    "OpenClipVision": Row("image", "", "", open_clip_image, "", "", "any image tower of open_clip"),
    "OpenClipText": Row("text", "", "", open_clip_text, "", "", "any text tower of open_clip"),
}


def demo_row(model: str, folder: str, **changes) -> Row:
    """The ordinary row of a family, pointed at one of the demo's small encoders."""
    small = dict(checkpoint=f"demo/encoders/{folder}", checkpoints=(), flag="", expansion_factor=4, top_k=16)
    return REGISTRY[model]._replace(**small, **changes)


REGISTRY |= {
    "DemoClipVision": demo_row("ClipVision", "clip", note="the demo's"),
    "DemoClipText": demo_row("ClipText", "clip", note="the demo's"),
    "DemoViT": demo_row("ViT", "vit", note="the demo's"),
    "DemoDino": demo_row("DinoV2", "dino", note="the demo's"),
    "DemoBert": demo_row("Bert", "bert", note="the demo's"),
    "DemoRandomVision": demo_row("ClipVision", "clip", note="the demo's control", random_weights=0),
}


# --------------------------------------------------------------------------------------------------------
# the wrapper


class LastBlock(Exception):
    """Raised by the hook on the last wanted block: what lies behind it is not computed."""


class WrappedModel:
    """A frozen encoder whose chosen blocks hand out their activations."""

    def __init__(self, model: str, checkpoint: str, row: Row, parts: Parts, device: str):
        """`row` is the registry's, completed: its blocks and its token are settled."""
        self.model, self.checkpoint, self.modality = model, checkpoint, row.modality
        self.token, self.path, self.device = row.token, row.blocks, device
        self.parts, self.preprocess, self.collate = parts, parts.preprocess, parts.collate
        self.tower = on_device(parts.tower.eval().requires_grad_(False), device)
        self.blocks = find_blocks(self.tower, self.path)
        self.n_layers = len(self.blocks)
        self.widths = parts.widths

    def file_stamp(self) -> str:
        """Names, sizes and dates of a folder's files, as sha256, or the commit of a snapshot in the hub's cache."""
        if folder := local_folder(self.checkpoint):
            found = sorted((file.name, file.stat()) for file in Path(folder).iterdir() if file.is_file())
            lines = (f"{name} {state.st_size} {state.st_mtime_ns}\n" for name, state in found)
            return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        return hub_commit(DINOV2.get(self.checkpoint, self.checkpoint).removeprefix("hf-hub:"))

    def resolve_layers(self, layers: list[int] | None) -> list[int]:
        """Layer numbers in rising order, each once: None means all, a negative one counts from the end."""
        if layers is None:
            return list(range(self.n_layers))
        for layer in layers:
            if not -self.n_layers <= layer < self.n_layers:
                raise UserError(
                    f"layer {layer} does not exist: {self.checkpoint} has {self.n_layers} blocks, "
                    f"--layers takes 0 to {self.n_layers - 1} or -1 to -{self.n_layers}"
                )
        return sorted({layer % self.n_layers for layer in layers})

    def activations(self, batch: dict, layers: list[int]) -> Activations:
        """Run one batch up to the last of `layers` (resolved numbers), without gradients."""
        import torch

        with torch.no_grad():
            batch = self.placed(batch)
            outputs = self.hooked(batch, layers)
            n_samples = len(next(iter(batch.values())))
            tokens = {layer: self.as_tokens(outputs[layer], n_samples) for layer in layers}
            self.check_alike(tokens)
            mask = self.training_mask(batch, tokens[layers[0]])
            return Activations(tokens, mask, pool_weights(self.token, mask))

    def placed(self, batch: dict) -> dict:
        """A batch on the encoder's device."""
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def hooked(self, batch: dict, layers: list[int]) -> dict:
        """{layer: what its block returned}; the hooks are gone afterwards, whatever happened."""
        outputs = {}

        def keep(layer, module, inputs, output):
            outputs[layer] = output
            if len(outputs) == len(layers):  # in whichever order the blocks are run
                raise LastBlock

        handles = []
        try:
            for layer in layers:
                handles.append(self.blocks[layer].register_forward_hook(functools.partial(keep, layer)))
            with contextlib.suppress(LastBlock):
                self.parts.forward(batch)
        finally:
            for handle in handles:
                handle.remove()
        if absent := [layer for layer in layers if layer not in outputs]:
            raise UserError(
                f"block {absent[0]} at {self.path!r} of {self.checkpoint} is never called as a module, so it cannot "
                f"be hooked; {choose_blocks(self.tower)}"
            )
        return outputs

    def first_input(self, batch: dict) -> Float[Any, "sample token d_in"] | None:
        """What goes into the block that runs first, as tokens; None where that is no tensor."""
        import torch

        caught = []

        def keep(module, inputs, named):
            caught.extend(value for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor))
            raise LastBlock

        parent = self.path.split(",")[0].rpartition(".")[0] if "," in self.path else ""
        blocks = [*block_lists(self.tower).get(parent, [])[:1], *self.blocks]
        handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
        try:
            with torch.no_grad(), contextlib.suppress(LastBlock):
                self.parts.forward(self.placed(batch))
        finally:
            for handle in handles:
                handle.remove()
        return self.as_tokens(caught[0], len(next(iter(batch.values())))) if caught else None

    def check_complete(self):
        """Refuse a checkpoint that lacks weights which any block depends on; a pooler or a head may be missing.

        A block depends on the weights that a gradient of its output reaches.
        """
        import torch

        drawn = self.parts.drawn
        if not drawn:
            return
        batch = self.collate([self.preprocess(sample_item(self.modality))])
        with torch.enable_grad():
            for weights in drawn.values():
                weights.requires_grad_(True)
            outputs = self.hooked(self.placed(batch), list(range(self.n_layers)))
            total = sum(self.as_tokens(output, 1).sum() for output in outputs.values())
            weights = list(drawn.values()) if total.requires_grad else []
            reached = torch.autograd.grad(total, weights, allow_unused=True) if weights else []
        self.tower.requires_grad_(False)
        if names := [name for name, gradient in zip(drawn, reached, strict=False) if gradient is not None]:
            raise UserError(
                f"{self.checkpoint!r} lacks weights of its blocks or of what is in front of them: "
                f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
            )
        self.parts = self.parts._replace(drawn={})

    def unknown_share(self, captions: list[str]) -> float:
        """The share of the captions' tokens that the tokenizer does not know; 0 where it can read everything."""
        return self.parts.unknown(captions) if self.parts.unknown else 0.0

    def as_tokens(self, output: Any, n_samples: int) -> Float[Any, "sample token d_in"]:
        """A block's output as tokens: the first of a tuple; the places of a feature map."""
        import torch

        while isinstance(output, tuple) and output:  # PVT's blocks put out a tuple in a tuple
            output = output[0]
        if not isinstance(output, torch.Tensor):
            raise UserError(
                f"the blocks at {self.path!r} of {self.checkpoint} put out a {type(output).__name__}, which is not "
                f"tokens; {choose_blocks(self.tower)}"
            )
        if output.ndim == 4:
            output = output if self.has_channels_last(output) else output.permute(0, 2, 3, 1)
            output = output.flatten(1, 2)
        if output.ndim != 3 or len(output) != n_samples:
            raise UserError(
                f"the blocks at {self.path!r} of {self.checkpoint} put out {list(output.shape)} for "
                f"{n_samples} samples, which are not tokens; {choose_blocks(self.tower)}"
            )
        return output

    def has_channels_last(self, feature_map: Any) -> bool:
        """Whether the last of four axes is the width: what the model declares tells, else what its library says."""
        could_be = [feature_map.shape[axis] in self.parts.widths for axis in (1, 3)]
        return could_be[1] if could_be[0] != could_be[1] else self.parts.channels_last

    def check_alike(self, tokens: dict):
        """Refuse layers of different resolution in one run, whose tokens are not the same places."""
        counts = {layer: tokens[layer].shape[1] for layer in tokens}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{layer}: {count}" for layer, count in counts.items())
            raise UserError(
                f"the layers of {self.checkpoint} have different numbers of tokens ({listed}); "
                "record those that agree in a run of their own, the last with --layers -1"
            )

    def training_mask(self, batch: dict, tokens: Any) -> Bool[Any, "sample token"]:
        """Which tokens an SAE is trained on: neither padding nor registers."""
        mask = self.parts.mask(batch)
        mask = tokens.new_ones(tokens.shape[:2], dtype=bool) if mask is None else mask
        mask[:, self.parts.registers] = False
        return mask


def on_device(tower: Any, device: str) -> Any:
    """Move a module; UserError where there is no such device, or too little memory on it."""
    try:
        return tower.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device!r} cannot be used ({first_line(error)}); type cpu or cuda"
        ) from error


def find_blocks(tower: Any, path: str) -> list:
    """The modules of the list at a dotted path, or at the one that ends so; or those of several paths."""
    if "," in path:
        modules = dict(tower.named_modules())
        named = path.split(",")
        unknown = [part for part in named if part not in modules]
        if unknown:
            raise UserError(f"there is no module {unknown[0]!r}; {choose_blocks(tower)}")
        if len(set(named)) < len(named):
            raise UserError(f"--blocks {path} names a module twice")
        return [modules[part] for part in named]
    lists = block_lists(tower)
    found = [name for name in lists if name == path] or [name for name in lists if name.endswith(f".{path}")]
    if len(found) != 1:
        raise UserError(f"there are no blocks at {path!r}; {choose_blocks(tower)}")
    return list(lists[found[0]])


def block_lists(tower: Any) -> dict:
    """{dotted path: list of modules}, those that might be blocks."""
    from torch.nn import ModuleList, Sequential

    return {
        path: module for path, module in tower.named_modules() if isinstance(module, ModuleList | Sequential)
    }


def choose_blocks(tower: Any) -> str:
    """What to type instead: the outer lists of modules and their lengths."""
    lists = {path: len(module) for path, module in block_lists(tower).items() if path and len(module) > 1}
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    return (
        f"--blocks takes one of {', '.join(f'{path} ({lists[path]})' for path in outer or lists) or 'none'}"
    )


def load(
    model: str,
    checkpoint: str | None = None,
    *,
    token: str = "own",
    blocks: str | None = None,
    device: str = "cpu",
    random_weights: int | None = None,
) -> WrappedModel:
    """Load a row's encoder, frozen and in eval mode, without touching any random number generator.

    `token`: "own" (the row's), "first" (the original's) or "mean" (of the codes of all unmasked tokens).
    `blocks`: the dotted path of the list of modules to hook, or several modules by commas.
    `random_weights`: a seed; draw the weights of the same architecture instead of loading the trained ones.
    Raises UserError for an unknown model, checkpoint, token or block path.
    """
    if model not in REGISTRY:
        raise UserError(f"unknown model {model!r}; --model takes one of {', '.join(REGISTRY)}")
    if token not in ("own", "first", "mean"):
        raise UserError(f"unknown token {token!r}; --token takes own, first or mean")
    row = REGISTRY[model]
    checkpoint = checkpoint or row.checkpoint
    if not checkpoint:
        raise UserError(f"{model} is a row for many encoders: name one with --checkpoint ({row.note})")
    seed = row.random_weights if random_weights is None else random_weights
    row = row._replace(blocks=blocks or row.blocks)
    parts = build(row, checkpoint, seed)
    own = row.token or parts.token
    row = row._replace(blocks=row.blocks or parts.blocks, token=own if token == "own" else token)
    encoder = WrappedModel(model, checkpoint, row, parts, device)
    with runs(checkpoint):
        encoder.check_complete()
    return encoder


def build(row: Row, checkpoint: str, seed: int | None) -> Parts:
    """Call a row's loader; building a model draws its weights, from `seed`, before any are loaded."""
    import torch

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        return row.loader(checkpoint, row, seed)


# --------------------------------------------------------------------------------------------------------
# the self-test: what every encoder has to pass on real items before hours are spent on it

OTHER_BLOCKS = "name other blocks with --blocks, or choose another encoder"
OTHER_ENCODER = "choose another encoder"
SAME = 5e-4  # how far a recorded token may move with its batch mates, relative to its norm
UNKNOWN = 0.5  # the share of unknown tokens above which a tokenizer is not the one of these captions


def self_test(encoder: Any, items: list, layers: list[int]):
    """Run one item alone and beside another, and refuse an encoder whose recorded tokens cannot be trusted.

    Raises UserError, which says what is wrong and what could be done.
    """
    with runs(encoder.checkpoint):
        batches = [
            encoder.collate([encoder.preprocess(item) for item in chosen]) for chosen in (items[:1], items)
        ]
        alone, beside = (encoder.activations(batch, layers) for batch in batches)
        checks = faults_of_form(encoder, beside), faults_of_batches(alone, beside)
        fault = next(itertools.chain(*checks, faults_of_token(encoder, items, beside)), None)
    if fault:
        raise UserError(f"{encoder.checkpoint} fails its self-test: {fault}")


def self_test_on(encoder: Any, pairs: Any, layers: list[int]):
    """The self-test on two items of a data set, of captions a short and a long one whose words are known."""
    items = first_items(encoder.modality, pairs)
    if encoder.modality == "text":
        check_words(encoder, items)
        items = sorted(dict.fromkeys(items), key=len)
        items = items[:1] + items[1:][-1:]
    self_test(encoder, items, layers)


def first_items(modality: str, pairs: Any) -> list:
    """The captions of the first 64 rows, or the first picture (or sound) and the next that is another."""
    if modality == "text":
        return [caption for row in range(min(64, len(pairs))) for caption in pairs.items(row, modality)]
    (first,) = pairs.items(0, modality)
    others = (item for row in range(1, min(64, len(pairs))) for item in pairs.items(row, modality))
    return [first, *itertools.islice((item for item in others if not alike(first, item)), 1)]


def alike(one: Any, other: Any) -> bool:
    """Whether two pictures, or two sounds, are the same."""
    import numpy as np

    return np.array_equal(one[0], other[0]) if isinstance(one, tuple) else one == other


def check_words(encoder: Any, captions: list[str]):
    """Say the share of unknown tokens where it is a tenth, and refuse an encoder that cannot read half of them."""
    share = encoder.unknown_share(captions)
    said = f"the tokenizer of {encoder.checkpoint} does not know {share:.0%} of the tokens of the captions"
    if share > UNKNOWN:
        raise UserError(f"{said}: is its vocabulary cut, or of another language?")
    if share > 0.1:
        print(said, file=sys.stderr)


def faults_of_form(encoder: Any, found: Activations) -> Iterator[str]:
    """Outputs that are not one finite vector of the declared width for each token of the mask."""
    for layer, tokens in found.layers.items():
        width = tokens.shape[2]
        if tokens.shape[:2] != found.mask.shape:
            yield f"layer {layer} puts out {tokens.shape[1]} tokens where {found.mask.shape[1]} are expected; {OTHER_BLOCKS}"
        elif encoder.widths and width not in encoder.widths:
            declared = ", ".join(map(str, sorted(encoder.widths)))
            yield f"layer {layer} puts out vectors of {width} where the model declares {declared}; {OTHER_BLOCKS}"
        elif not tokens[found.mask].isfinite().all():
            yield f"layer {layer} puts out numbers that are not finite; {OTHER_BLOCKS}"


def faults_of_batches(alone: Activations, beside: Activations) -> Iterator[str]:
    """An item that has other tokens, or another recorded one, beside another item than alone."""
    counts = [int(found.mask[0].sum()) for found in (alone, beside)]
    if counts[0] != counts[1]:
        yield f"an item has {counts[0]} tokens alone and {counts[1]} beside another; {OTHER_ENCODER}"
    for layer in alone.layers:
        before, after = (recorded(found, layer)[0] for found in (alone, beside))
        moved = float((after - before).norm() / before.norm().clamp_min(1e-30))
        if moved > SAME:
            yield f"an item's recorded token moves by {moved:.1%} beside another item, in layer {layer}; {OTHER_ENCODER}"


def faults_of_token(encoder: Any, items: list, found: Activations) -> Iterator[str]:
    """A CLS that is no token of its own, or a recorded token that says nothing of its item."""
    if encoder.token == "first":  # asked for, so that the original's numbers can be checked
        return
    if encoder.token == "cls" and not has_cls(encoder, items[0]):
        yield "the first token of its blocks is not its CLS, which has no place among them; add --token mean"
    for layer in found.layers if len(items) > 1 else ():
        one, other = recorded(found, layer)
        if (one - other).norm() <= 1e-6 * one.norm():
            yield f"two different items have the same recorded token in layer {layer}; add --token mean"


def has_cls(encoder: Any, item: Any) -> bool:
    """Whether the first token is the same for an item and its opposite, as they go into the first block."""
    batch = encoder.collate([encoder.preprocess(each) for each in (item, opposite(item))])
    tokens = encoder.first_input(batch)
    return tokens is not None and bool((tokens[0, 0] == tokens[1, 0]).all())


def opposite(item: Any) -> Any:
    """A caption backwards; a picture's negative: no part of it is the same."""
    from PIL import ImageOps

    return item[::-1] if isinstance(item, str) else ImageOps.invert(item.convert("RGB"))


def recorded(found: Activations, layer: int) -> Float[Any, "sample d_in"]:
    """What is recorded of each item: a token, or the mean of several."""
    chosen = found.layers[layer].masked_fill(found.pool[:, :, None] == 0, 0)  # padding may be NaN
    return (found.pool[:, :, None] * chosen).sum(1)


@contextlib.contextmanager
def runs(checkpoint: str):
    """Turn what a library raises while it runs an encoder for the first time into a UserError."""
    import torch

    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except foreign_errors() as error:
        raise UserError(f"{checkpoint} cannot be run on one item: {first_line(error)}") from error


class Checked(NamedTuple):
    """What `check` saw of one encoder."""

    encoder: WrappedModel
    widths: list[int]  # one a layer
    n_tokens: list[int]  # one a layer
    trained: int  # tokens of the last layer that would train an SAE
    recorded: list[int]  # the positions that are recorded, in the last layer
    seconds_to_load: float
    seconds_to_run: float


def check(model: str, checkpoint: str | None, **options) -> Checked:
    """Load one checkpoint and run one picture, caption or sound through it, layer by layer; then its self-test."""
    started = time.perf_counter()
    encoder = load(model, checkpoint, **options)
    loaded = time.perf_counter()
    with runs(encoder.checkpoint):
        batch = encoder.collate([encoder.preprocess(sample_item(encoder.modality))])
        found = [encoder.activations(batch, [layer]) for layer in encoder.resolve_layers(None)[:-1]]
        rerun = time.perf_counter()
        found.append(encoder.activations(batch, [encoder.n_layers - 1]))
    seconds = time.perf_counter() - rerun
    self_test(
        encoder,
        [sample_item(encoder.modality, short=True), sample_item(encoder.modality)],
        [encoder.n_layers - 1],
    )
    shapes = [next(iter(each.layers.values())).shape for each in found]
    return Checked(
        encoder,
        [shape[2] for shape in shapes],
        [shape[1] for shape in shapes],
        int(found[-1].mask.sum()),
        found[-1].pool[0].nonzero()[:, 0].tolist(),
        loaded - started,
        seconds,
    )


def sample_item(modality: str, short: bool = False) -> Any:
    """One item to try an encoder on: a picture of shades, a caption, or a second of a tone at 48 kHz."""
    import numpy as np
    from PIL import Image

    if modality == "text":
        return "A dog." if short else "Two cats asleep on a pink couch."
    if modality == "audio":
        pitch, length = (660, 24_000) if short else (440, 48_000)
        return np.sin(np.arange(length, dtype=np.float32) * (2 * np.pi * pitch / 48_000)), 48_000
    shades = [Image.radial_gradient("L"), Image.linear_gradient("L"), Image.new("L", (256, 256))]
    return Image.merge("RGB", shades[::-1] if short else shades)


def describe(checked: Checked) -> str:
    """What `--check` prints of one encoder."""
    encoder, recorded = checked.encoder, checked.recorded
    where = f"token {recorded[0]}" if len(recorded) == 1 else f"{len(recorded)} tokens"
    return os.linesep.join(
        [
            f"{encoder.model} {encoder.checkpoint} ({encoder.modality})",
            f"  blocks    {encoder.n_layers} at {encoder.path}, width {some(checked.widths)}",
            f"  tokens    {some(checked.n_tokens)}, of which {checked.trained} train",
            f"  recorded  {encoder.token}: {where}",
            f"  seconds   {checked.seconds_to_load:.1f} to load, {checked.seconds_to_run:.2f} for one item",
        ]
    )


def some(numbers: list[int]) -> str:
    """Numbers of the layers, once where all are the same."""
    return ", ".join(str(number) for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def rows_of(checkpoint: str) -> list[str]:
    """The rows that name a checkpoint as theirs."""
    rows = [name for name, row in REGISTRY.items() if checkpoint in (row.checkpoint, *row.checkpoints)]
    rows = rows or ["DinoV2"] * (checkpoint in DINOV2)
    if not rows:
        raise UserError(
            f"{checkpoint!r} could be any kind of encoder: add --model, one of {', '.join(REGISTRY)}"
        )
    return rows


def main(argv: list[str] | None = None) -> Any:
    """Print the registry as a table, or try one checkpoint; returns what it printed."""
    from commandline import Parser, script  # as a script this file stands above the leaves

    @script
    def report(argv):
        parser = Parser("Print the table of encoders, or load one checkpoint and run one item through it.")
        parser.add_argument("--check", metavar="CHECKPOINT", help="load this one and run one item")
        parser.add_argument("--model", metavar="NAME", help="its row; by default every row that names it")
        parser.add_argument(
            "--blocks", metavar="PATH", help="the list of modules to hook, by its dotted path"
        )
        parser.add_argument("--token", default="own", help="own, first or mean: what is recorded of an item")
        parser.add_argument("--device", default="cpu", help="where to run it")
        parser.add_argument("--markdown", action="store_true", help="print the table as the README has it")
        arguments = parser.parse_args(argv)
        if arguments.check is None and arguments.model is None:
            printed = markdown() if arguments.markdown else table()
            print(printed)
            return printed
        options = {"blocks": arguments.blocks, "token": arguments.token, "device": arguments.device}
        rows = [arguments.model] if arguments.model else rows_of(arguments.check)
        checked = [check(row, arguments.check, **options) for row in rows]
        print(os.linesep.join(describe(one) for one in checked))
        return checked

    return report(argv)


TITLES = ("--model", "modality", "default checkpoint", "blocks", "token", "notes")


def cells() -> list[tuple]:
    """The registry's cells, a tuple a row; what a row leaves open is asked of the model."""
    return [
        (name, row.modality, row.checkpoint or "-", row.blocks or "asked", row.token or "asked", row.note)
        for name, row in REGISTRY.items()
    ]


def markdown() -> str:
    """The README's table: the rows that are no demo's, with the paper's checkpoints."""
    lines = [
        "| `--model` | checkpoints (the default in bold) | blocks | recorded token | notes |",
        "| --- " * 5 + "|",
    ]
    for name, _, default, blocks, token, note in cells():
        if not name.startswith("Demo"):
            known = REGISTRY[name].checkpoints or (default,)
            listed = ", ".join(f"**`{one}`**" if one == default else f"`{one}`" for one in known)
            lines.append(
                f"| {name} | {listed if default != '-' else 'yours'} | `{blocks}` | {token} | {note} |"
            )
    return os.linesep.join(lines)


def table() -> str:
    """The registry, a line a row."""
    titles, rows = TITLES, cells()
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    return os.linesep.join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    )


if __name__ == "__main__":
    main()
