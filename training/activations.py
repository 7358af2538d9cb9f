"""Batches of hooked activations: items decoded in DataLoader workers, one encoder forward for all layers.

What a training run will record of its rows is kept on the way (`RecordedTokens`), so that no row is encoded twice.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plumbing.errors import UserError


@contextlib.contextmanager
def tensor_cores() -> Iterator[None]:
    """Products of float32 by TF32 where a GPU has it; what else runs in this process keeps its own setting."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Batch(NamedTuple):
    """What one forward pass gives for some rows of the data; a row has one item, or several captions."""

    rows: list[int]  # which samples, in order
    row_of_item: Int[Tensor, " item"]  # position in `rows` that each item belongs to
    layers: dict[int, Float[Tensor, "item token d_in"]]
    mask: Bool[Tensor, "item token"]  # False: padding or a register, which never trains
    pool: Float[Tensor, "item token"]  # each token's weight in what is recorded of its item; sums to 1

    def flat(self, layer: int, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_in"]:
        """A layer's tokens by their flat positions, in float32."""
        return self.layers[layer].flatten(0, 1).index_select(0, chosen).float()

    def real_tokens(self, items: Bool[Tensor, " item"] | None = None) -> Int[Tensor, " chosen"]:
        """The flat positions of the tokens that are neither padding nor registers, of all or some items."""
        mask = self.mask if items is None else self.mask & items[:, None]
        return mask.flatten().nonzero().squeeze(1)

    def recorded_tokens(self) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
        """The flat positions of the tokens that are recorded, and the position in `rows` that each belongs to."""
        chosen = self.pool.flatten().nonzero().squeeze(1)
        return chosen, self.row_of_item.repeat_interleave(self.pool.shape[1])[chosen]

    @property
    def nbytes(self) -> int:
        """Bytes of the activations."""
        return sum(tokens.nbytes for tokens in self.layers.values())


class Stream:
    """An encoder's activations over a data set, in any order of rows."""

    def __init__(self, encoder: Any, pairs: Any, layers: list[int], workers: int, device: str):
        self.encoder, self.pairs, self.layers = encoder, pairs, layers
        self.workers, self.device = workers, device

    def batches(self, plan: list[list[int]]) -> Iterator[Batch]:
        """Yield a batch for each list of rows in `plan`; an unreadable item raises its `UserError`."""
        examples = _Examples(self.pairs, self.encoder.preprocess, self.encoder.collate, self.encoder.modality)
        loader = torch.utils.data.DataLoader(
            examples,
            batch_sampler=plan,
            num_workers=min(self.workers, len(plan)),
            collate_fn=examples.collate,
            pin_memory=self.device.startswith("cuda"),
        )
        for rows, row_of_item, inputs in loader:
            if isinstance(inputs, UserError):
                raise inputs
            with tensor_cores():
                found = self.encoder.activations(inputs, self.layers)
            yield Batch(rows, row_of_item.to(found.mask.device), found.layers, found.mask, found.pool)


class _Examples(torch.utils.data.Dataset):
    """A row's preprocessed items. A mistake in the data travels as a value: a worker would wrap it in a traceback."""

    def __init__(self, pairs, preprocess, collate_items, modality):
        self.pairs, self.preprocess, self.collate_items = pairs, preprocess, collate_items
        self.modality = modality

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, row: int):
        try:
            return row, [self.preprocess(item) for item in self.pairs.items(row, self.modality)]
        except UserError as mistake:
            return row, mistake

    def collate(self, samples):
        rows = [row for row, _ in samples]
        for _, items in samples:
            if isinstance(items, UserError):
                return rows, torch.zeros(0, dtype=torch.long), items
        counts = torch.tensor([len(items) for _, items in samples])
        row_of_item = torch.arange(len(rows)).repeat_interleave(counts)
        return rows, row_of_item, self.collate_items([item for _, items in samples for item in items])
