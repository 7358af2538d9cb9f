"""The encoders: a literal table of them, and one wrapper that hands out the activations of their blocks.

To add an encoder, add a row to REGISTRY and, where none of the loaders fits, a function that returns
its `Parts`. `uv run wrappedmodels.py` prints the table.
"""

import difflib

from encoders.from_open_clip import open_clip_image, open_clip_text
from encoders.from_timm import timm_image
from encoders.from_transformers import OtherFamily, hf_audio, hf_image, hf_text
from encoders.hub import DINOV2, UnknownName, quiet
from encoders.self_test import runs
from encoders.wrapper import Parts, Row, WrappedModel
from plumbing.errors import UserError


def nearest(name: str) -> str:
    """'did you mean A, B? ' of the paper's checkpoints, or nothing."""
    known = sorted({checkpoint for row in REGISTRY.values() for checkpoint in row.checkpoints} | set(DINOV2))
    close = [other for other in difflib.get_close_matches(name, known, 3, 0.9) if other != name]
    return f"did you mean {', '.join(close)}? " if close else ""


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
    small = dict(
        checkpoint=f"toyworld/weights/{folder}", checkpoints=(), flag="", expansion_factor=4, top_k=16
    )
    return REGISTRY[model]._replace(**small, **changes)


REGISTRY |= {
    "DemoClipVision": demo_row("ClipVision", "clip", note="the demo's"),
    "DemoClipText": demo_row("ClipText", "clip", note="the demo's"),
    "DemoViT": demo_row("ViT", "vit", note="the demo's"),
    "DemoDino": demo_row("DinoV2", "dino", note="the demo's"),
    "DemoBert": demo_row("Bert", "bert", note="the demo's"),
    "DemoRandomVision": demo_row("ClipVision", "clip", note="the demo's control", random_weights=0),
}


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
    try:
        parts = build(row, checkpoint, seed)
    except UnknownName as error:
        raise UserError(f"{error.message}; {nearest(error.name)}{error.hint}") from error
    except OtherFamily as error:
        raise UserError(f"{error}; use {rows_for(error.model_type)}") from error
    own = row.token or parts.token
    row = row._replace(blocks=row.blocks or parts.blocks, token=own if token == "own" else token)
    encoder = WrappedModel(model, checkpoint, row, parts, device)
    with runs(checkpoint):
        encoder.check_complete()
    return encoder


def rows_for(model_type: str) -> str:
    """What to type for a checkpoint of transformers' `model_type`."""
    rows = [name for name, row in REGISTRY.items() if model_type in row.types and not name.startswith("Demo")]
    return " or ".join(f"--model {name}" for name in rows or ("HFVision", "HFText"))


def build(row: Row, checkpoint: str, seed: int | None) -> Parts:
    """Call a row's loader; building a model draws its weights, from `seed`, before any are loaded."""
    import torch

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        return row.loader(checkpoint, row, seed)
