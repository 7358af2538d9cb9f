"""A frozen encoder whose chosen blocks hand out their activations, and the parts that a loader makes it of."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

from encoders.hub import DINOV2, hub_commit, local_folder
from encoders.inputs import sample_item
from plumbing.errors import UserError, first_line


class Activations(NamedTuple):
    """The tokens that the wanted blocks put out for some items, and which of them count.

    An item is a picture, a sound or a caption; a "chosen" token is named by its flat position, item by item.
    """

    layers: dict[int, Float[Any, "item token d_in"]]
    mask: Bool[Any, "item token"]  # True: a token to train on; never padding, never a register
    recorded: Int[Any, " item"] | None  # each item's recorded position; None: the mean over the mask's tokens
    rows: Sequence[int] = ()  # the data set's row of each item, in order: several captions may share one

    def flat(self, layer: int, chosen: Int[Any, " chosen"]) -> Float[Any, "chosen d_in"]:
        """A layer's chosen tokens, in float32."""
        return self.layers[layer].flatten(0, 1).index_select(0, chosen).float()

    def real_tokens(self, items: Bool[Any, " item"] | None = None) -> Int[Any, " chosen"]:
        """The tokens of all or some items that are neither padding nor registers."""
        mask = self.mask if items is None else self.mask & items[:, None]
        return mask.flatten().nonzero().squeeze(1)

    def recorded_tokens(self) -> tuple[Int[Any, " chosen"], Int[Any, " chosen"], Float[Any, " chosen"]]:
        """The tokens that are recorded, the item of each, and its weight: the weights of an item sum to 1."""
        import torch

        n_items, n_tokens = self.mask.shape
        if self.recorded is None:
            chosen = self.real_tokens()
            items = chosen // n_tokens
            return chosen, items, (self.mask / self.mask.sum(1, keepdim=True)).flatten()[chosen]
        items = torch.arange(n_items, device=self.mask.device)
        return items * n_tokens + self.recorded, items, self.mask.new_ones(n_items).float()


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


def first_token(mask: Bool[Any, "sample token"]) -> Int[Any, " sample"]:
    """Position 0: the CLS token where there is one."""
    return mask.new_zeros(len(mask), dtype=int)


def last_token(mask: Bool[Any, "sample token"]) -> Int[Any, " sample"]:
    """The last position that is no padding: the end of text of CLIP, the last word of a causal model."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


TOKENS = {"cls": first_token, "first": first_token, "end_of_text": last_token, "last": last_token}


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
            return Activations(tokens, mask, None if self.token == "mean" else TOKENS[self.token](mask))

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
