"""WrappedModel: a frozen encoder whose blocks are hooked. Parts: what a loader has to supply to make one."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoders.blocks import choose_blocks, find_blocks, outputs_of
from encoders.hub import file_stamp
from encoders.inputs import Inputs
from encoders.row import Asked, Row
from plumbing.errors import UserError, first_line


class Activations(NamedTuple):
    """What the hooked blocks put out for a batch of items, and which of the tokens count.

    An item is a picture, a sound or a caption. "Chosen" tokens are flat indices: item * n_tokens + token.
    """

    layers: dict[int, Float[Tensor, "item token d_in"]]
    mask: Bool[Tensor, "item token"]  # True: train on this token; False for padding and registers
    recorded: Int[Tensor, " item"] | None  # the recorded token's position; None: the mean over the mask
    rows: Sequence[int] = ()  # the row of the data set of each item: several captions may share one
    mask_here: Bool[np.ndarray, "item token"] | None = None  # the mask on the CPU; None: it has to be copied

    def flat(self, layer: int, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_in"]:
        """The chosen tokens of one layer, in float32."""
        return self.layers[layer].flatten(0, 1).index_select(0, chosen).float()

    def real_tokens(self, items: Bool[np.ndarray, " item"] | None = None) -> Int[Tensor, " chosen"]:
        """The flat indices of the mask's tokens, of all items or of those where `items` is True.

        They are looked for on the CPU: to look on the device is to wait for it.
        """
        mask = self.known_mask() if items is None else self.known_mask() & items[:, None]
        return torch.from_numpy(np.flatnonzero(mask)).to(self.mask.device, non_blocking=True)

    def known_mask(self) -> Bool[np.ndarray, "item token"]:
        """The mask on the CPU."""
        return self.mask.cpu().numpy() if self.mask_here is None else self.mask_here

    def recorded_tokens(
        self,
    ) -> tuple[Int[Tensor, " chosen"], Int[np.ndarray, " chosen"], Float[np.ndarray, " chosen"]]:
        """The recorded tokens: flat index, item and weight of each. The weights of an item sum to 1."""
        n_items, n_tokens = self.mask.shape
        if self.recorded is None:
            items = self.known_mask().nonzero()[0]
            n_real = np.bincount(items, minlength=n_items).astype(np.float32)
            return self.real_tokens(), items, 1 / n_real[items]
        starts = torch.arange(0, n_items * n_tokens, n_tokens, device=self.mask.device)
        return starts + self.recorded, np.arange(n_items), np.ones(n_items, np.float32)


def no_padding(batch: Inputs) -> None:
    """A `Parts.mask` that returns None: every token counts, as in image encoders."""


def all_known(captions: list[str]) -> float:
    """A `Parts.unknown_share` that returns 0: the tokenizer, if any, has a token for every text."""
    return 0.0


class Parts(NamedTuple):
    """One encoder as a loader returns it: the module, how to run it, and how to feed it."""

    tower: nn.Module  # holds the blocks
    forward: Callable[[Inputs], object]  # runs the tower on a batch; only the hooks read the result
    preprocess: Callable[..., Inputs]  # one item to tensors; picklable
    collate: Callable[[list[Inputs]], Inputs]  # several preprocessed items to a padded batch; picklable
    mask: Callable[[Inputs], Bool[Tensor, "sample token"] | None] = no_padding  # None: every token counts
    registers: slice = slice(0)  # positions of register tokens, which describe no part of the sample
    channels_last: bool = False  # a block's 4-D output is [sample, height, width, d_in]
    token: str = ""  # the token that the encoder pools, for a row that names none
    blocks: str = ""  # dotted path of its blocks, for a row that names none
    widths: frozenset[int] = frozenset()  # the d_in that the model declares; empty: it declares none
    drawn: Mapping[str, nn.Parameter] = MappingProxyType({})  # weights drawn at random: not in the checkpoint
    unknown_share: Callable[[list[str]], float] = all_known  # captions -> share of unknown tokens, 0 to 1


def first_token(mask: Bool[Tensor, "sample token"]) -> Int[Tensor, " sample"]:
    """Position 0: the CLS token where there is one."""
    return mask.new_zeros(len(mask), dtype=torch.long)


def last_token(mask: Bool[Tensor, "sample token"]) -> Int[Tensor, " sample"]:
    """The last position that the mask has: CLIP's end of text, the last word of a causal model."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


TOKENS = {"cls": first_token, "first": first_token, "end_of_text": last_token, "last": last_token}


class WrappedModel:
    """A frozen encoder whose blocks are hooked: `activations` runs a batch and returns their outputs.

    `preprocess` turns one item into tensors, `collate` several into a batch; both run in DataLoader workers.
    """

    # One of PRECISIONS. It holds for the encoder's arithmetic alone: SAEs and features stay in float32.
    precision = "float32"

    def __init__(self, model: str, checkpoint: str, row: Row, parts: Parts, device: str):
        """`row`: the registry's row with `blocks` and `token` filled in; `parts`: what its loader returned."""
        self.model, self.checkpoint, self.modality = model, checkpoint, row.modality
        self.token, self.path, self.device = row.token, row.blocks, device
        self.parts, self.preprocess, self.collate = parts, parts.preprocess, parts.collate
        self.widths, self.unknown_share = parts.widths, parts.unknown_share
        self.top_k, self.expansion_factor = row.top_k, row.expansion_factor  # of SAEs that suit it
        self.asked: Asked = {"blocks": None, "random_weights": None, "encoder_precision": "float32"}
        self.tower = on_device(parts.tower.eval().requires_grad_(False), device)
        self.blocks = find_blocks(self.tower, self.path)
        self.n_layers = len(self.blocks)

    def file_stamp(self) -> str:
        """A text that changes when the checkpoint's files change; a resume compares it."""
        return file_stamp(self.checkpoint)

    def resolve_layers(self, layers: Sequence[int] | None) -> list[int]:
        """Layer numbers, sorted and without repeats. None: all layers; -1: the last. UserError: no such layer."""
        if layers is None:
            return list(range(self.n_layers))
        for layer in layers:
            if not -self.n_layers <= layer < self.n_layers:
                raise UserError(
                    f"layer {layer} does not exist: {self.checkpoint} has {self.n_layers} blocks, "
                    f"--layers takes 0 to {self.n_layers - 1} or -1 to -{self.n_layers}"
                )
        return sorted({layer % self.n_layers for layer in layers})

    def activations(self, batch: Inputs, layers: list[int]) -> Activations:
        """Run a batch up to the last of `layers` (resolved numbers), without gradients. Tokens are float32."""
        with torch.no_grad():
            with self.autocast():
                tokens = self.tokens(self.placed(batch), layers)
            tokens = {layer: found.float() for layer, found in tokens.items()}
            self.check_alike(tokens)
            mask = self.training_mask(batch, tokens[layers[0]].shape[:2])
            mask_here, mask = mask.numpy(), mask.to(self.device, non_blocking=True)
            recorded = None if self.token == "mean" else TOKENS[self.token](mask)
            return Activations(tokens, mask, recorded, mask_here=mask_here)

    def autocast(self) -> torch.autocast:
        """torch's autocast in the encoder's precision; it leaves operations that need float32 in float32."""
        lower = self.precision != "float32"
        return torch.autocast(self.device.partition(":")[0], getattr(torch, self.precision), lower)

    def placed(self, batch: Inputs) -> Inputs:
        """A batch on the encoder's device."""
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def tokens(self, batch: Inputs, layers: list[int]) -> dict[int, Float[Tensor, "sample token d_in"]]:
        """The outputs of the blocks in `layers` for a batch that is on the device; gradients as torch is set."""
        outputs = outputs_of(
            {layer: self.blocks[layer] for layer in layers}, lambda: self.parts.forward(batch)
        )
        if absent := [layer for layer in layers if layer not in outputs]:
            raise UserError(
                f"block {absent[0]} at {self.path!r} of {self.checkpoint} is never called as a module, so it cannot "
                f"be hooked; {choose_blocks(self.tower)}"
            )
        return {layer: self.as_tokens(outputs[layer], n_items(batch)) for layer in layers}

    def as_tokens(self, output: object, n_samples: int) -> Float[Tensor, "sample token d_in"]:
        """A block's output as tokens: of a tuple its first element; a 4-D feature map flattened, a token a position."""
        while isinstance(output, tuple) and output:  # PVT's blocks put out a tuple in a tuple
            output = output[0]
        if not isinstance(output, Tensor):
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

    def has_channels_last(self, feature_map: Tensor) -> bool:
        """Whether a 4-D output is [sample, height, width, d_in]: by the declared widths, else as `Parts` says."""
        could_be = [feature_map.shape[axis] in self.parts.widths for axis in (1, 3)]
        return could_be[1] if could_be[0] != could_be[1] else self.parts.channels_last

    def check_alike(self, tokens: dict[int, Tensor]):
        """UserError where layers differ in their numbers of tokens: one mask could not serve them all."""
        counts = {layer: tokens[layer].shape[1] for layer in tokens}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{layer}: {count}" for layer, count in counts.items())
            raise UserError(
                f"the layers of {self.checkpoint} have different numbers of tokens ({listed}); "
                "record those that agree in a run of their own, the last with --layers -1"
            )

    def training_mask(self, batch: Inputs, shape: Sequence[int]) -> Bool[Tensor, "sample token"]:
        """True for the tokens that SAEs are trained on, neither padding nor registers; where the batch is, on the CPU."""
        mask = self.parts.mask(batch)
        mask = torch.ones(*shape, dtype=torch.bool) if mask is None else mask
        mask[:, self.parts.registers] = False
        return mask


def n_items(batch: Inputs) -> int:
    """How many items a batch holds."""
    return len(next(iter(batch.values())))


def on_device(tower: nn.Module, device: str) -> nn.Module:
    """Move a module to a device. UserError: no such device, too little memory on it, or a kind without float64 (mps)."""
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("sums are in float64 here, which not all kinds of devices have")
        return tower.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--device {device!r} has too little memory for this encoder: free some, name another GPU, or type cpu"
        ) from error
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device!r} cannot be used ({first_line(error)}); type cpu or cuda"
        ) from error
