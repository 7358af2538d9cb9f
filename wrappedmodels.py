"""The encoders: a literal table of them, and one wrapper that hands out the activations of their blocks.

To add an encoder, add a row to REGISTRY and, where none of the loaders fits, a function that returns
its `Parts`. `uv run wrappedmodels.py` prints the table.
"""

import contextlib
import difflib
import functools
import logging
import os
from argparse import ArgumentTypeError as UserError
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

ROOT = Path(__file__).resolve().parent


class Activations(NamedTuple):
    """What the wanted blocks put out for a batch, and which of its tokens count."""

    layers: dict[int, Float[Any, "sample token d_in"]]
    mask: Bool[Any, "sample token"]  # True: a token to train on; never padding, never a register
    pool: Float[Any, "sample token"]  # sums to 1 per sample: one-hot at the recorded token, or 1/n of a mean


class Parts(NamedTuple):
    """What a loader knows of one encoder."""

    tower: Any  # the torch module that holds the blocks
    forward: Callable[[dict], Any]  # runs the tower over a batch; what it returns is not looked at
    preprocess: Callable[[Any], dict]  # one item to tensors; picklable
    collate: Callable[[list], dict]  # those of several items to a padded batch; picklable
    mask: Callable[[dict], Any] | None = None  # batch -> Bool [sample token]; None: there is no padding
    registers: int = 0  # tokens 1..registers stand for nothing in the sample
    channels_last: bool = False  # how to read a block's 4-D output


class Row(NamedTuple):
    """One line of the registry."""

    modality: str
    flag: str  # the family's own spelling of --checkpoint
    checkpoint: str  # the default
    loader: Callable[[str, "Row", int | None], Parts]
    blocks: str  # dotted path of the ModuleList to hook
    token: str  # what is recorded of a sample: a key of TOKENS, or "mean"
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
    return mask.new_zeros(mask.shape, dtype=float).float().scatter(1, TOKENS[token](mask)[:, None], 1.0)


# --------------------------------------------------------------------------------------------------------
# the hub: the cache first, the network only where it answers


def from_hub(build: Callable[[], Any], name: str, repository: str) -> Any:
    """Call `build` on what is cached; only where that fails and the hub answers, let it download.

    The hub's clients retry a dead network for 20 seconds a file and ask it even for what is cached.
    An empty `repository` means that nothing can be downloaded.
    Raises UserError where the name is unknown, or neither cached nor reachable.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return build()
    except (OSError, RuntimeError, ValueError) as error:
        missing = error
    finally:
        constants.HF_HUB_OFFLINE = offline
    if not repository:
        raise UserError(f"{name!r} cannot be loaded: {first_line(missing)}") from missing
    reach(name, repository, offline)
    return build()


def reach(name: str, repository: str, offline: bool):
    """Ask the hub once, for at most five seconds, whether it has `repository`; UserError where it has not."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    fetch = f"fetch it where there is a network with `hf download {repository}`"
    if offline:
        raise UserError(
            f"{name!r} is not in the Hugging Face cache and HF_HUB_OFFLINE is set; {nearest(name)}{fetch}"
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


def nearest(name: str) -> str:
    """'did you mean A, B? ' of the paper's checkpoints, or nothing."""
    known = sorted({checkpoint for row in REGISTRY.values() for checkpoint in row.checkpoints} | set(DINOV2))
    close = difflib.get_close_matches(name, known, 3, 0.9)
    return f"did you mean {', '.join(close)}? " if close else ""


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def quiet():
    """Without the libraries' remarks on weights that nothing reads; what matters is raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


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


def open_clip_model(name: str, seed: int | None) -> tuple[Any, str]:
    """Build an open_clip model in single precision; also open_clip's own name for it."""
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
        force_quick_gelu=options.get("quick_gelu", False),  # ViT-B-32 with OpenAI's weights needs it too
        force_preprocess_cfg=recipe,
    )
    return from_hub(build, name, repository), model


def open_clip_image(name: str, row: Row, seed: int | None) -> Parts:
    """The image tower of an open_clip model."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torch.utils.data import default_collate

    model, _ = open_clip_model(name, seed)
    keep_only(model, "visual")
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    preprocess = functools.partial(transformed, transform)
    return Parts(model, lambda batch: model.visual(batch["pixel_values"]), preprocess, default_collate)


def transformed(transform: Callable, picture: Any) -> dict:
    """One picture through a torchvision transform."""
    return {"pixel_values": transform(picture.convert("RGB"))}


def open_clip_text(name: str, row: Row, seed: int | None) -> Parts:
    """The text tower of an open_clip model, whose end of text is the highest id of a caption."""
    import open_clip

    model, source = open_clip_model(name, seed)
    del model.visual
    tokenizer = from_hub(lambda: open_clip.get_tokenizer(source), name, open_clip_name(name)[2])
    text = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower apart
    return Parts(
        model,
        lambda batch: causal_text(text, batch["input_ids"]),
        functools.partial(open_clip_ids, tokenizer),
        crop_to_end_of_text,
        mask=lambda batch: up_to_end_of_text(batch["input_ids"]),
    )


def open_clip_ids(tokenizer: Callable, caption: str) -> dict:
    """One caption as token ids, padded to the context length."""
    return {"input_ids": tokenizer([caption])[0]}


def crop_to_end_of_text(items: list) -> dict:
    """Stack captions up to the longest end of text: a causal model puts nothing of use behind it."""
    import torch

    ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": ids[:, : int(ids.argmax(1).max()) + 1]}


def up_to_end_of_text(ids: Int[Any, "sample token"]) -> Bool[Any, "sample token"]:
    """True from the start of text to the end of text, both included."""
    import torch

    return torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(1, keepdim=True)


def causal_text(text: Any, ids: Int[Any, "sample token"]) -> Any:
    """CLIP's text blocks on captions shorter than the context, which open_clip's own forward refuses."""
    n_tokens = ids.shape[1]
    embedded = text.token_embedding(ids) + text.positional_embedding[:n_tokens]
    return text.transformer(embedded, attn_mask=text.attn_mask[:n_tokens, :n_tokens])


def keep_only(model: Any, child: str):
    """Drop a model's other children: the tower that is not wanted need not be moved to the device."""
    for name in [name for name, _ in model.named_children() if name != child]:
        delattr(model, name)


# --------------------------------------------------------------------------------------------------------
# transformers

# A checkpoint of two towers is loaded as the one that is wanted.
TOWERS = {
    ("siglip", "image"): "SiglipVisionModel",
    ("siglip", "text"): "SiglipTextModel",
    ("siglip2", "image"): "Siglip2VisionModel",
    ("siglip2", "text"): "Siglip2TextModel",
}

# torch.hub's names of DINOv2, without torch.hub: it runs code from the network.
DINOV2 = {
    f"dinov2_vit{letter}14{suffix}": f"facebook/dinov2-{'with-registers-' if suffix else ''}{size}"
    for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    for suffix in ("", "_reg")
}


def hf_tower(name: str, row: Row, seed: int | None) -> Any:
    """Build a transformers model, or the wanted tower of one, in single precision."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    check_type(name, config.model_type, row)
    tower_name = TOWERS.get((config.model_type, row.modality))
    model_class = getattr(transformers, tower_name or "AutoModel")
    if seed is None:
        tower, report = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        missing = [key for key in report["missing_keys"] if row.blocks in key]
        if missing:  # a pooler or a head may be missing, for nothing reads it
            raise UserError(f"{name!r} lacks {len(missing)} weights of its blocks, {missing[0]} among them")
        return tower
    if tower_name:
        return model_class._from_config(model_class.config_class.from_pretrained(name))
    return model_class.from_config(config)


def check_type(name: str, found: str, row: Row):
    """Refuse a checkpoint of another family, and say which row takes it."""
    if row.types and found not in row.types:
        rows = [key for key, other in REGISTRY.items() if found in other.types and not key.startswith("Demo")]
        raise UserError(
            f"{name!r} is a {found!r} model, not {' or '.join(row.types)}; "
            f"use {' or '.join(f'--model {key}' for key in rows) or 'another checkpoint'}"
        )


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


def hf_image(name: str, row: Row, seed: int | None) -> Parts:
    """An image encoder of transformers, behind its own image processor."""
    from torch.utils.data import default_collate
    from transformers import AutoImageProcessor

    tower = hf_load(name, lambda source: hf_tower(source, row, seed))
    processor = hf_load(name, AutoImageProcessor.from_pretrained)
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(processed, processor),
        default_collate,
        mask=patch_mask,
        registers=getattr(tower.config, "num_register_tokens", 0),
    )


def processed(processor: Callable, picture: Any) -> dict:
    """One picture through an image processor of transformers, which raises on anything but RGB."""
    batch = processor(images=picture.convert("RGB"), return_tensors="pt")
    return {key: value[0] for key, value in batch.items()}


def patch_mask(batch: dict) -> Any:
    """NaFlex pads a picture's patches to a fixed number; elsewhere every token stands for something."""
    mask = batch.get("pixel_attention_mask")
    return None if mask is None else mask.bool()


def hf_text(name: str, row: Row, seed: int | None) -> Parts:
    """A text encoder of transformers with an attention mask."""
    from transformers import AutoTokenizer

    tower = hf_load(name, lambda source: hf_tower(source, row, seed))
    tokenizer = hf_load(name, AutoTokenizer.from_pretrained)
    longest = min(tokenizer.model_max_length, tower.config.max_position_embeddings)
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(token_ids, tokenizer, longest),
        functools.partial(pad, tokenizer.pad_token_id),
        mask=lambda batch: batch["attention_mask"].bool(),
    )


def token_ids(tokenizer: Callable, longest: int, caption: str) -> dict:
    """One caption as token ids, cut at `longest`."""
    import torch

    return {"input_ids": torch.tensor(tokenizer(caption, truncation=True, max_length=longest).input_ids)}


def pad(padding: int, items: list) -> dict:
    """Captions to the length of the longest, padded on the right, with their attention mask."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [item["input_ids"] for item in items]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=padding), "attention_mask": mask}


def siglip_text(name: str, row: Row, seed: int | None) -> Parts:
    """SigLIP's text tower: always 64 tokens and no attention mask, as it was trained; its last token pools.

    That token is nearly always padding, so it is trained on, while the padding before it is not.
    """
    from torch.utils.data import default_collate
    from transformers import AutoTokenizer

    tower = hf_load(name, lambda source: hf_tower(source, row, seed))
    tokenizer = hf_load(name, AutoTokenizer.from_pretrained)
    return Parts(
        tower,
        lambda batch: tower(**batch),
        functools.partial(fixed_ids, tokenizer, tower.config.max_position_embeddings),
        default_collate,
        mask=functools.partial(words_and_last, tokenizer.pad_token_id),
    )


def fixed_ids(tokenizer: Callable, length: int, caption: str) -> dict:
    """One caption as exactly `length` token ids, padded on the right.

    SigLIP was trained on lower case, which the tokenizer that its fixed-size checkpoints name does not make.
    """
    batch = tokenizer(
        [caption.lower()],
        padding="max_length",
        max_length=length,
        truncation=True,
        padding_side="right",
        return_tensors="pt",
    )
    return {"input_ids": batch.input_ids[0]}


def words_and_last(padding: int, batch: dict) -> Any:
    """True at every token that is no padding, and at the last."""
    mask = batch["input_ids"] != padding
    mask[:, -1] = True
    return mask


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
        siglip_text,
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

    def __init__(
        self, model: str, checkpoint: str, token: str, blocks: str, parts: Parts, device: str = "cpu"
    ):
        self.model, self.checkpoint, self.token, self.device = model, checkpoint, token, device
        self.modality = REGISTRY[model].modality
        self.parts = parts
        self.preprocess, self.collate = parts.preprocess, parts.collate
        self.tower = parts.tower.eval().requires_grad_(False).to(device)
        self.blocks = find_blocks(self.tower, blocks)
        self.n_layers = len(self.blocks)

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
            batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            outputs = self.hooked(batch, layers)
            tokens = {layer: as_tokens(outputs[layer], self.parts.channels_last) for layer in layers}
            mask = self.training_mask(batch, next(iter(tokens.values())))
            return Activations(tokens, mask, pool_weights(self.token, mask))

    def hooked(self, batch: dict, layers: list[int]) -> dict:
        """{layer: what its block returned}; the hooks are gone afterwards, whatever happened."""
        outputs, last = {}, max(layers)

        def keep(layer, module, inputs, output):
            outputs[layer] = output
            if layer == last:
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
        return outputs

    def training_mask(
        self, batch: dict, tokens: Float[Any, "sample token d_in"]
    ) -> Bool[Any, "sample token"]:
        """Which tokens an SAE is trained on: neither padding nor registers (tokens 1..registers)."""
        mask = self.parts.mask(batch) if self.parts.mask else None
        mask = tokens.new_ones(tokens.shape[:2], dtype=bool) if mask is None else mask
        mask[:, 1 : 1 + self.parts.registers] = False
        return mask


def as_tokens(output: Any, channels_last: bool) -> Float[Any, "sample token d_in"]:
    """A block's output as tokens: the first of a tuple; the places of a feature map."""
    output = output[0] if isinstance(output, tuple) else output
    if output.ndim == 4:
        output = output if channels_last else output.permute(0, 2, 3, 1)
        output = output.flatten(1, 2)
    return output


def find_blocks(tower: Any, path: str) -> Any:
    """The ModuleList at a dotted path, or at the one path that ends so."""
    from torch.nn import ModuleList

    lists = {name: module for name, module in tower.named_modules() if isinstance(module, ModuleList)}
    found = [name for name in lists if name == path] or [name for name in lists if name.endswith(f".{path}")]
    if len(found) != 1:
        raise UserError(f"there are no blocks at {path!r}; choose of {', '.join(lists) or 'none'}")
    return lists[found[0]]


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
    `random_weights`: a seed; draw the weights of the same architecture instead of loading the trained ones.
    Raises UserError for an unknown model, checkpoint, token or block path.
    """
    if model not in REGISTRY:
        raise UserError(f"unknown model {model!r}; --model takes one of {', '.join(REGISTRY)}")
    if token not in ("own", "first", "mean"):
        raise UserError(f"unknown token {token!r}; --token takes own, first or mean")
    import torch

    row = REGISTRY[model]
    checkpoint = checkpoint or row.checkpoint
    seed = row.random_weights if random_weights is None else random_weights
    with (
        quiet(),
        torch.random.fork_rng(devices=[]),
    ):  # building a model draws its weights before they are loaded
        torch.manual_seed(seed or 0)
        parts = row.loader(checkpoint, row, seed)
    return WrappedModel(
        model, checkpoint, row.token if token == "own" else token, blocks or row.blocks, parts, device
    )


def main(argv=None) -> str:
    """Print the registry as a table."""
    titles = ("--model", "modality", "default checkpoint", "blocks", "token", "notes")
    rows = [(name, r.modality, r.checkpoint, r.blocks, r.token, r.note) for name, r in REGISTRY.items()]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    table = os.linesep.join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    )
    print(table)
    return table


if __name__ == "__main__":
    main()
