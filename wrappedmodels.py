"""The encoders: a literal table of them, and one function that loads any. `uv run check.py` prints the table.

To add an encoder, add a row to REGISTRY and, where none of the loaders fits, a function in `encoders/` that returns
its `Parts`. Importing this file must not import torch, which takes seconds: loaders are named, not imported.
"""

import importlib
from typing import TYPE_CHECKING

from encoders.hub import DINOV2, OtherRow, UnknownName, quiet
from encoders.row import PRECISIONS, Row
from plumbing.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import encoders.wrapper

CLIP_B, CLIP_L = "ViT-B/32-quickgelu", "ViT-L/14-quickgelu"
DFN_B, DFN_L = "hf-hub:apple/DFN2B-CLIP-ViT-B-16", "hf-hub:apple/DFN2B-CLIP-ViT-L-14"
SIGLIP_B, SIGLIP_L = "google/siglip2-base-patch16-224", "google/siglip2-large-patch16-384"
VIT_B, VIT_L = "google/vit-base-patch16-224", "google/vit-large-patch16-384"
CLAP = "laion/clap-htsat-unfused"

# fmt: off
REGISTRY = {
    # --model             modality, loader, default checkpoint, blocks, recorded token, flag, types, the paper's checkpoints
    "ClipVision": Row("image", "from_open_clip.image", CLIP_L, "visual.transformer.resblocks", "cls",
                      "--clip_model_name", (), (CLIP_B, CLIP_L, DFN_B, DFN_L),
                      "OpenAI's CLIP and DFN: a name or MODEL/TAG of open_clip, hf-hub:OWNER/NAME or local-dir:FOLDER"),
    "ClipText": Row("text", "from_open_clip.text", CLIP_L, "transformer.resblocks", "end_of_text",
                    "--clip_model_name", (), (CLIP_B, CLIP_L, DFN_B, DFN_L),
                    "causal: token 0 is the same for every caption"),
    "SigLIP2Vision": Row("image", "from_transformers.image", SIGLIP_L, "encoder.layers", "mean",
                         "--siglip2_model_name", ("siglip", "siglip2"), (SIGLIP_B, SIGLIP_L),
                         "no CLS: the codes of the patches are averaged; NaFlex checkpoints too"),
    "SiglipText": Row("text", "from_transformers.text", SIGLIP_L, "encoder.layers", "last",
                      "--siglip2_model_name", ("siglip", "siglip2"), (SIGLIP_B, SIGLIP_L),
                      "always 64 tokens, no attention mask"),
    "ViT": Row("image", "from_transformers.image", VIT_L, "layers", "cls",
               "--vit_model_name", ("vit",), (VIT_B, VIT_L)),
    "DinoV2": Row("image", "from_transformers.image", "dinov2_vitl14", "encoder.layer", "cls",
                  "--dino_model_name", ("dinov2", "dinov2_with_registers"), ("dinov2_vitb14", "dinov2_vitl14"),
                  "dinov2_vit{s,b,l,g}14[_reg] are names of facebook/dinov2-…; registers are left out"),
    "Bert": Row("text", "from_transformers.text", "bert-large-uncased", "encoder.layer", "cls",
                "--bert_model_name", ("bert",), ("bert-base-uncased", "bert-large-uncased")),
    "Deberta": Row("text", "from_transformers.text", "microsoft/deberta-large", "encoder.layer", "cls",
                   "--deberta_model_name", ("deberta",), ("microsoft/deberta-base", "microsoft/deberta-large")),
    "ClapAudio": Row("audio", "from_transformers.audio", CLAP, "audio_encoder.layers.3.blocks", "mean",
                     types=("clap",), note="the last of four stages; the first ten seconds of a sound"),
    "ClapText": Row("text", "from_transformers.text", CLAP, "encoder.layer", "cls", types=("clap",)),
    "HFVision": Row("image", "from_transformers.image", note="any image encoder of transformers"),
    "HFText": Row("text", "from_transformers.text",
                  note="any of transformers: encoder, decoder (its last token), or the encoder of both"),
    "TimmVision": Row("image", "from_timm.image", note="any model of timm: MODEL.TAG, OWNER/NAME or FOLDER"),
    "OpenClipVision": Row("image", "from_open_clip.image", note="any image tower of open_clip"),
    "OpenClipText": Row("text", "from_open_clip.text", note="any text tower of open_clip"),
}
# fmt: on


def demo_row(model: str, folder: str, note: str = "the demo's", random_weights: int | None = None) -> Row:
    """The ordinary row of a family, pointed at one of the demo's small encoders."""
    return REGISTRY[model]._replace(
        checkpoint=f"toyworld/weights/{folder}",
        checkpoints=(),
        flag="",
        note=note,
        expansion_factor=4,
        top_k=16,
        random_weights=random_weights,
    )


REGISTRY |= {
    "DemoClipVision": demo_row("ClipVision", "clip"),
    "DemoClipText": demo_row("ClipText", "clip"),
    "DemoViT": demo_row("ViT", "vit"),
    "DemoDino": demo_row("DinoV2", "dino"),
    "DemoBert": demo_row("Bert", "bert"),
    "DemoRandomVision": demo_row("ClipVision", "clip", "the demo's control", random_weights=0),
}


def load(
    model: str,
    checkpoint: str | None = None,
    *,
    token: str = "own",
    blocks: str | None = None,
    device: str = "cpu",
    random_weights: int | None = None,
    encoder_precision: str = "float32",
) -> "encoders.wrapper.WrappedModel":
    """Load a row's encoder, frozen and in eval mode, without touching any random number generator.

    `token`: "own" (the row's), "first" (the original's) or "mean" (of the codes of all unmasked tokens).
    `blocks`: the dotted path of the list of modules to hook, or several modules by commas.
    `random_weights`: a seed; draw the weights of the same architecture instead of loading the trained ones.
    `encoder_precision`: "float32", "bfloat16" or "float16", by autocast; its tokens are float32 all the same.
    Raises UserError for an unknown model, checkpoint, token, block path or precision.
    """
    row = find_row(model)
    if token not in ("own", "first", "mean"):
        raise UserError(f"unknown token {token!r}; --token takes own, first or mean")
    if encoder_precision not in PRECISIONS:
        takes = ", ".join(PRECISIONS)
        raise UserError(f"unknown precision {encoder_precision!r}; --encoder_precision takes {takes}")
    checkpoint = checkpoint or row.checkpoint
    if not checkpoint:
        raise UserError(f"{model} is a row for many encoders: name one with --checkpoint ({row.note})")
    row = row._replace(blocks=blocks or row.blocks)
    seed = row.random_weights if random_weights is None else random_weights
    try:
        encoder = build(model, checkpoint, row, token, device, seed)
    except UnknownName as error:
        checkpoints = {name for row in REGISTRY.values() for name in row.checkpoints} | DINOV2.keys()
        close = did_you_mean(error.name, checkpoints, 0.9)
        raise UserError(f"{error.message}; {close}{error.hint}") from error
    except OtherRow as error:
        raise UserError(f"{error}; use {rows_for(error.model_type, row)}") from error
    asked = {"blocks": blocks, "random_weights": random_weights, "encoder_precision": encoder_precision}
    encoder.precision, encoder.asked = encoder_precision, asked  # run.json keeps what was typed
    return encoder


def find_row(model: str) -> Row:
    """A row of the registry by its name."""
    if model not in REGISTRY:
        close = did_you_mean(model, REGISTRY, 0.65)
        raise UserError(f"unknown model {model!r}; {close}--model takes one of {', '.join(REGISTRY)}")
    return REGISTRY[model]


def rows_for(model_type: str, row: Row) -> str:
    """What to type for a checkpoint that is not `row`'s: the rows of transformers' `model_type`.

    Where there is none, the rows for any model of the same library; with "", those that load it as `row` does.
    """
    library = row.loader.partition(".")[0] if model_type else row.loader
    own = [name for name in REGISTRY if not name.startswith("Demo") and model_type in REGISTRY[name].types]
    generic = [
        name for name, other in REGISTRY.items() if not other.checkpoint and other.loader.startswith(library)
    ]
    return " or ".join(f"--model {name}" for name in own or generic)


def build(
    model: str, checkpoint: str, row: Row, token: str, device: str, seed: int | None
) -> "encoders.wrapper.WrappedModel":
    """Call a row's loader and wrap its parts; weights are drawn, from `seed`, before any are loaded."""
    import torch

    from encoders.self_test import check_complete
    from encoders.wrapper import WrappedModel

    file, function = row.loader.split(".")
    loader = getattr(importlib.import_module(f"encoders.{file}"), function)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)  # torch.manual_seed would seed the GPUs' too
        parts = loader(checkpoint, row, seed)
    own = row.token or parts.token
    row = row._replace(blocks=row.blocks or parts.blocks, token=own if token == "own" else token)
    encoder = WrappedModel(model, checkpoint, row, parts, device)
    check_complete(encoder)
    return encoder
