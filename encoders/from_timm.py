"""Image encoders of timm."""

import difflib
import functools
from typing import Any, TypedDict

import timm
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.utils.data import default_collate

from encoders.blocks import choose_blocks
from encoders.hub import from_hub, local_folder
from encoders.inputs import transformed
from encoders.row import Row
from encoders.wrapper import Parts
from plumbing.errors import UserError


class Layout(TypedDict, total=False):
    """The blocks of an image tower, and what its tokens are: fields of `Parts`."""

    blocks: str
    token: str
    registers: slice
    channels_last: bool
    widths: frozenset[int]


def image(name: str, row: Row, seed: int | None) -> Parts:
    """An image encoder of timm."""
    source, repository = timm_name(name)
    tower = from_hub(functools.partial(timm.create_model, source, pretrained=seed is None), name, repository)
    options: dict[str, Any] = resolve_model_data_config(tower)
    transform: Any = create_transform(**options, is_training=False)
    return Parts(
        tower,
        lambda batch: tower(batch["pixel_values"]),
        functools.partial(transformed, transform),
        default_collate,
        **timm_layout(tower, "", row.blocks),
    )


def timm_name(name: str) -> tuple[str, str]:
    """Read a checkpoint's name as (timm's name, hub repository): MODEL[.TAG], OWNER/NAME, FOLDER."""
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
    return name, getattr(settings, "hf_hub_id", None) or ""


def timm_layout(trunk: nn.Module, prefix: str = "", blocks: str = "") -> Layout:
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


def timm_widths(trunk: nn.Module) -> frozenset[int]:
    """The widths that a timm model declares: of its features, and of its tokens."""
    declared = [getattr(trunk, name, None) for name in ("embed_dim", "num_features")]
    features = [info["num_chs"] for info in getattr(trunk, "feature_info", None) or []]
    return frozenset(features + [width for width in declared if isinstance(width, int)])


def timm_blocks(trunk: nn.Module, prefix: str) -> str:
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
