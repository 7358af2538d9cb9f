"""Try one encoder on one item, before hours are spent on many."""

import time
from typing import NamedTuple

from encoders.inputs import sample_item
from encoders.self_test import Rows, runs, self_test, two_items
from encoders.wrapper import WrappedModel


class Trial(NamedTuple):
    """What was seen of an encoder that passed its self-test."""

    encoder: WrappedModel
    widths: list[int]  # one a layer
    n_tokens: list[int]  # one a layer
    trained: int  # tokens of the last layer that would train an SAE
    recorded: list[int]  # the positions that are recorded, in the last layer
    unknown_share: float  # of the tokens of the captions that were tried; 0 for pictures and sounds
    seconds: float  # for one item, once everything is warm

    def lines(self) -> list[str]:
        """What a person reads of it."""
        encoder, recorded = self.encoder, self.recorded
        where = f"token {recorded[0]}" if len(recorded) == 1 else f"{len(recorded)} tokens"
        unknown = f"{self.unknown_share:.0%} of the tokens of the captions tried"
        return [
            f"{encoder.model} {encoder.checkpoint} ({encoder.modality})",
            f"  blocks    {encoder.n_layers} at {encoder.path}, width {once(self.widths)}",
            f"  tokens    {once(self.n_tokens)}, of which {self.trained} train",
            f"  recorded  {encoder.token}: {where}",
            *([f"  unknown   {unknown}"] if encoder.modality == "text" else []),
            "  self-test passed",
        ]


def once(numbers: list[int]) -> str:
    """The numbers of the layers, or the one that they share."""
    return ", ".join(map(str, numbers[:1] if len(set(numbers)) == 1 else numbers))


def try_encoder(encoder: WrappedModel, pairs: Rows | None = None) -> Trial:
    """Run an item of `pairs`, or a made one, through each layer by itself, since resolutions differ; then self-test."""
    if pairs is None:
        items = [sample_item(encoder.modality, short) for short in (True, False)]
    else:
        items = two_items(encoder, pairs)
    last = encoder.n_layers - 1
    with runs(encoder.checkpoint):
        batch = encoder.collate([encoder.preprocess(items[-1])])
        shapes = [
            encoder.activations(batch, [layer]).layers[layer].shape for layer in range(encoder.n_layers)
        ]
        started = time.perf_counter()
        found = encoder.activations(batch, [last])
        seconds = time.perf_counter() - started
    self_test(encoder, items, [last])
    return Trial(
        encoder,
        [shape[2] for shape in shapes],
        [shape[1] for shape in shapes],
        int(found.mask.sum()),
        found.recorded_tokens()[0].tolist(),
        encoder.unknown_share([item for item in items if isinstance(item, str)]),
        seconds,
    )
