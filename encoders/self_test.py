"""The self-test of an encoder: two items tell, before hours are spent, whether its tokens can be trusted."""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import ImageOps
from torch import Tensor, nn

from encoders.blocks import block_lists, first_input_of
from encoders.hub import foreign_errors
from encoders.inputs import Inputs, Item, sample_item
from encoders.wrapper import Activations, WrappedModel, n_items
from plumbing.errors import UserError, first_line
from plumbing.threads import float32_products

OTHER_BLOCKS = "name other blocks with --blocks, or choose another encoder"

OTHER_ENCODER = "choose another encoder"

OTHER_PRECISION = "type --encoder_precision bfloat16, whose numbers may be larger"

# The most that other items of the batch may change a recorded token, relative to its norm, by the encoder's precision.
SAME = {"float32": 5e-4, "float16": 1e-2, "bfloat16": 5e-2}

SAME_TOKEN = 1e-6  # tokens that differ by less than this share of their norm are the same but for rounding

UNKNOWN = 0.5  # above this share of unknown tokens, the tokenizer does not fit the captions


@runtime_checkable
class Rows(Protocol):
    """What the self-test asks of a data set: how many rows it has, and one of them as an encoder takes it."""

    def __len__(self) -> int: ...

    def items(self, row: int, side: str) -> Sequence[Item]: ...


def self_test(encoder: WrappedModel, items: list[Item], layers: list[int]):
    """Run one item alone and beside another, and refuse an encoder whose recorded tokens cannot be trusted.

    In whole float32: in TF32 a GPU's kernels, which differ with the size of a batch, would differ by as much as `SAME`.
    Error: it says what is wrong and what could be done.
    """
    with float32_products("highest"), runs(encoder.checkpoint):
        batches = [
            encoder.collate([encoder.preprocess(item) for item in chosen]) for chosen in (items[:1], items)
        ]
        alone, beside = (encoder.activations(batch, layers) for batch in batches)
        checks = faults_of_form(encoder, beside), faults_of_batches(alone, beside, SAME[encoder.precision])
        fault = next(itertools.chain(*checks, faults_of_token(encoder, items, beside)), None)
    if fault:
        raise UserError(f"{encoder.checkpoint} fails its self-test: {fault}")


def self_test_on(encoder: WrappedModel, pairs: Rows, layers: list[int]):
    """The self-test on two items of a data set."""
    self_test(encoder, two_items(encoder, pairs), layers)


def two_items(encoder: WrappedModel, pairs: Rows) -> list[Item]:
    """Two different items of a data set; of captions, the shortest and the longest. Error: their words are unknown."""
    items = first_items(encoder.modality, pairs)
    captions = [item for item in items if isinstance(item, str)]
    if not captions:
        return items
    check_words(encoder, captions)
    captions = sorted(dict.fromkeys(captions), key=len)
    return [*captions[:1], *captions[1:][-1:]]


def first_items(modality: str, pairs: Rows) -> list[Item]:
    """The captions of the first 64 rows, or the first picture (or sound) and the next one that differs."""
    if modality == "text":
        return [caption for row in range(min(64, len(pairs))) for caption in pairs.items(row, modality)]
    (first,) = pairs.items(0, modality)
    others = (item for row in range(1, min(64, len(pairs))) for item in pairs.items(row, modality))
    return [first, *itertools.islice((item for item in others if not alike(first, item)), 1)]


def alike(one: Item, other: Item) -> bool:
    """Whether two pictures, or two sounds, are the same."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return np.array_equal(one[0], other[0])
    return one == other


def check_words(encoder: WrappedModel, captions: list[str]):
    """Refuse a tokenizer that does not know half of the captions' tokens; above a tenth, print the share."""
    share = encoder.unknown_share(captions)
    said = f"the tokenizer of {encoder.checkpoint} does not know {share:.0%} of the tokens of the captions"
    if share > UNKNOWN:
        raise UserError(f"{said}: is its vocabulary cut, or of another language?")
    if share > 0.1:
        print(said, file=sys.stderr)


def faults_of_form(encoder: WrappedModel, found: Activations) -> Iterator[str]:
    """Yield layers that do not put out one finite vector of the declared width for each token of the mask."""
    for layer, tokens in found.layers.items():
        width = tokens.shape[2]
        if tokens.shape[:2] != found.mask.shape:
            yield f"layer {layer} puts out {tokens.shape[1]} tokens where {found.mask.shape[1]} are expected; {OTHER_BLOCKS}"
        elif encoder.widths and width not in encoder.widths:
            declared = ", ".join(map(str, sorted(encoder.widths)))
            yield f"layer {layer} puts out vectors of {width} where the model declares {declared}; {OTHER_BLOCKS}"
        elif not tokens[found.mask].isfinite().all():
            remedy = OTHER_PRECISION if encoder.precision == "float16" else OTHER_BLOCKS
            yield f"layer {layer} puts out numbers that are not finite; {remedy}"


def faults_of_batches(alone: Activations, beside: Activations, same: float) -> Iterator[str]:
    """Yield what another item in the batch changes: the number of an item's tokens, or, by more than `same`, the recorded one."""
    counts = [int(found.mask[0].sum()) for found in (alone, beside)]
    if counts[0] != counts[1]:
        yield f"an item has {counts[0]} tokens alone and {counts[1]} beside another; {OTHER_ENCODER}"
    for layer in alone.layers:
        before, after = (recorded(found, layer)[0] for found in (alone, beside))
        moved = float((after - before).norm() / before.norm().clamp_min(1e-30))
        if moved > same:
            yield f"an item's recorded token moves by {moved:.1%} beside another item, in layer {layer}; {OTHER_ENCODER}"


def faults_of_token(encoder: WrappedModel, items: list[Item], found: Activations) -> Iterator[str]:
    """Yield a first token that is not a CLS, and layers whose recorded token is the same for different items."""
    if encoder.token == "first":  # asked for, so that the original's numbers can be checked
        return
    if encoder.token == "cls" and not has_cls(encoder, items[0]):
        yield "the first token of its blocks is not its CLS token, which does not pass through them; add --token mean"
    for layer in found.layers if len(items) > 1 else ():
        one, other = recorded(found, layer)
        if (one - other).norm() <= SAME_TOKEN * one.norm():
            yield f"two different items have the same recorded token in layer {layer}; add --token mean"


def has_cls(encoder: WrappedModel, item: Item) -> bool:
    """Whether an item and its opposite go into the first block with the same first token, as a CLS is."""
    batch = encoder.collate([encoder.preprocess(each) for each in (item, opposite(item))])
    tokens = first_input(encoder, batch)
    if tokens is None:
        return False
    one, other = tokens[:, 0].float()
    return bool((one - other).norm() <= SAME_TOKEN * one.norm())


def first_input(encoder: WrappedModel, batch: Inputs) -> Float[Tensor, "sample token d_in"] | None:
    """What goes into the block that runs first, as tokens; None where that is no tensor."""
    named_singly = "," in encoder.path  # then the first block of the list may not be among them
    parent = encoder.path.split(",")[0].rpartition(".")[0] if named_singly else ""
    blocks = [*list(block_lists(encoder.tower).get(parent, []))[:1], *encoder.blocks]
    with torch.no_grad(), encoder.autocast():
        found = first_input_of(blocks, lambda: encoder.parts.forward(encoder.placed(batch)))
    return None if found is None else encoder.as_tokens(found, n_items(batch))


def opposite(item: Item) -> Item:
    """A caption backwards, a picture's or a sound's negative: no part of it is the same."""
    if isinstance(item, str):
        return item[::-1]
    if isinstance(item, tuple):
        return -item[0], item[1]
    return ImageOps.invert(item.convert("RGB"))


def recorded(found: Activations, layer: int) -> Float[Tensor, "sample d_in"]:
    """What is recorded of each item: a token, or the mean of several."""
    chosen, *places = found.recorded_tokens()
    items, weights = (torch.from_numpy(one).to(chosen.device) for one in places)
    tokens = found.flat(layer, chosen) * weights[:, None]
    return tokens.new_zeros(len(found.mask), tokens.shape[1]).index_add_(0, items, tokens)


@contextlib.contextmanager
def runs(checkpoint: str):
    """Turn what a library raises while it runs an encoder for the first time into a UserError."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except foreign_errors() as error:
        raise UserError(f"{checkpoint} cannot be run on one item: {first_line(error)}") from error


def check_complete(encoder: WrappedModel):
    """Refuse a checkpoint that lacks weights which any block depends on; a pooler or a head may be missing."""
    drawn = encoder.parts.drawn
    if not drawn:
        return
    with runs(encoder.checkpoint):
        reached = reached_by_blocks(encoder, list(drawn.values()))
    if names := [name for name, weights in drawn.items() if id(weights) in reached]:
        raise UserError(
            f"{encoder.checkpoint!r} lacks weights of its blocks or of what is in front of them: "
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
        )
    encoder.parts = encoder.parts._replace(drawn={})  # frees those of a tower that is not used


def reached_by_blocks(encoder: WrappedModel, weights: list[nn.Parameter]) -> set[int]:
    """The ids of those weights that a gradient of the blocks' outputs reaches, which therefore depend on them."""
    batch = encoder.placed(encoder.collate([encoder.preprocess(sample_item(encoder.modality))]))
    with torch.enable_grad():
        for each in weights:
            each.requires_grad_(True)
        tokens = encoder.tokens(batch, list(range(encoder.n_layers)))
        total = torch.stack([output.sum() for output in tokens.values()]).sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True) if total.requires_grad else []
    encoder.tower.requires_grad_(False)
    return {id(each) for each, gradient in zip(weights, gradients, strict=False) if gradient is not None}
