"""Batches of hooked activations: items decoded in DataLoader workers, one encoder forward for all layers."""

from collections.abc import Iterator

import torch

from data import Pairs
from encoders.inputs import Inputs
from encoders.wrapper import Activations, WrappedModel
from plumbing.errors import UserError
from plumbing.threads import float32_products


class Stream:
    """An encoder's activations over a data set, in any order of rows."""

    def __init__(self, encoder: WrappedModel, pairs: Pairs, layers: list[int], workers: int = 0):
        self.encoder, self.pairs, self.layers, self.workers = encoder, pairs, layers, workers

    def batches(self, plan: list[list[int]]) -> Iterator[Activations]:
        """Yield a batch for each list of rows in `plan`; an unreadable item raises its `UserError`."""
        examples = _Examples(self.pairs, self.encoder)
        loader = torch.utils.data.DataLoader(
            examples,
            batch_sampler=plan,
            num_workers=min(self.workers, len(plan)),
            collate_fn=examples.collate,
            pin_memory=self.encoder.device.startswith("cuda"),
        )
        for rows, inputs in loader:
            yield self.encode(rows, inputs)

    def read(self, rows: list[int]) -> tuple[list[int], Inputs | UserError]:
        """Read and preprocess some rows, here and now; an item's row, and the batch or the first mistake."""
        examples = _Examples(self.pairs, self.encoder)
        return examples.collate([examples[row] for row in rows])

    def encode(self, rows: list[int], inputs: Inputs | UserError) -> Activations:
        """Run the encoder on what was read."""
        if isinstance(inputs, UserError):
            raise inputs
        with float32_products("high"):
            found = self.encoder.activations(inputs, self.layers)
        return found._replace(rows=rows)


class _Examples(torch.utils.data.Dataset):
    """A row's preprocessed items. A `UserError` is returned, not raised: a worker would wrap it in a traceback."""

    def __init__(self, pairs: Pairs, encoder: WrappedModel):
        self.pairs, self.modality = pairs, encoder.modality
        self.preprocess, self.collate_items = encoder.preprocess, encoder.collate

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, list[Inputs] | UserError]:
        try:
            return index, [self.preprocess(item) for item in self.pairs.items(index, self.modality)]
        except UserError as mistake:
            return index, mistake

    def collate(
        self, samples: list[tuple[int, list[Inputs] | UserError]]
    ) -> tuple[list[int], Inputs | UserError]:
        rows, inputs = [], []
        for row, items in samples:
            if isinstance(items, UserError):
                return [], items
            rows += [row] * len(items)
            inputs += items
        return rows, self.collate_items(inputs)
