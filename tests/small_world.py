"""An encoder and a data set of a few lines, for tests of what is built on their interfaces."""

import zlib
from typing import ClassVar

import torch

from data import Pairs
from encoders.wrapper import Activations, WrappedModel
from sources.opened import Sample
from training import experiment, flags
from training.activations import Stream
from training.settings import Settings


class SmallPairs(Pairs):
    """Captions `0`, `1`, …; the number is all there is to a sample. `captions` gives those of a row when it is read."""

    def __init__(self, n_samples=6, captions=lambda row: [str(row)]):
        samples = [Sample(str(row), f"{row}.png", [str(row)], None) for row in range(n_samples)]
        super().__init__("small", samples, bytes, {"dataset": "small"})
        object.__setattr__(self, "caption_of", captions)

    def file_stamp(self):
        return "the same"

    def items(self, row, side):
        assert side == "text"
        return self.caption_of(row)


class SmallEncoder(WrappedModel):
    """Three layers of four tokens, of which the last is padding; the second one is recorded,
    or what `recorded` says (None: the mean of the first three).

    A token is a mixture of a few of 12 fixed directions, drawn from the caption, far from the origin: `offset`
    times its spread. So it is worth centring, and a sparse code can fit it. Of `broken_row` all is NaN, or what
    `broken` says: a layer, a token and a value.
    """

    model, checkpoint, modality, token, n_layers, device = "Small", "none", "text", "own", 3, "cpu"
    top_k, expansion_factor, widths = 2, 3, frozenset()  # it declares no widths
    asked: ClassVar = {"blocks": None, "random_weights": None, "encoder_precision": "float32"}

    def __init__(self, d_in=8, offset=10.0, recorded=1, broken_row=None, broken=None):
        random = torch.Generator().manual_seed(7)
        self.directions = torch.randn(3, 12, d_in, generator=random)
        self.offset = offset * torch.randn(3, d_in, generator=random)
        self.recorded, self.broken_row, self.broken = recorded, broken_row, broken

    def file_stamp(self):
        return "small"

    def resolve_layers(self, layers):
        return list(range(3)) if layers is None else sorted(layer % 3 for layer in layers)

    def unknown_share(self, captions):
        return 0.0

    def preprocess(self, caption):
        random = torch.Generator().manual_seed(zlib.crc32(caption.encode()))
        parts = torch.rand(4, 12, generator=random) * (torch.rand(4, 12, generator=random) < 0.2)
        bad = caption == str(self.broken_row)
        if bad and not self.broken:
            parts = parts * float("nan")
        return {"parts": parts, "bad": torch.tensor(bad)}

    @staticmethod
    def collate(items):
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def activations(self, batch, layers):
        parts = batch["parts"]
        found = {layer: parts @ self.directions[layer] + self.offset[layer] for layer in layers}
        if self.broken and self.broken[0] in found:
            layer, token, value = self.broken
            found[layer][batch["bad"], token] = value
        mask = torch.tensor([True, True, True, False]).expand(len(parts), 4)
        recorded = None if self.recorded is None else torch.full((len(parts),), self.recorded)
        return Activations(found, mask, recorded)


def variants(runname="run", seeds=(0,), top_k=(2,), **settings):
    """The settings of each run of a command, by its name."""
    return flags.name_variants(runname, Settings(**{"batch_size": 16, **settings}), list(top_k), list(seeds))


def prepare(encoder=None, pairs=None, layers=(0, 1, 2), sae=None, **settings):
    """The work of a command, its run folders opened, which neither tested its encoder nor did any of it."""
    stream = Stream(encoder or SmallEncoder(), pairs or SmallPairs(300), list(layers))
    return experiment.prepare(stream, variants(**settings), sae, overwrite=False, started=0.0)


def settle(encoder=None, pairs=None, layers=(0, 1, 2), sae=None, **settings):
    """The work of a command, before any run folder is opened."""
    stream = Stream(encoder or SmallEncoder(), pairs or SmallPairs(300), list(layers))
    return experiment.settle(stream, variants(**settings), sae, started=0.0)


def train(
    encoder=None,
    pairs=None,
    layers=("all",),
    sae=None,
    overwrite=False,
    checkpoint_every=60.0,
    log=None,
    **settings,
):
    """Train on the small world as a script does that was given these flags; returns the runs."""
    return experiment.train_all(
        encoder or SmallEncoder(),
        pairs or SmallPairs(300),
        variants(**settings),
        flags.asked_layers(layers and list(layers), sae),
        sae=sae,
        overwrite=overwrite,
        checkpoint_every=checkpoint_every,
        log=log,
        command=["train_text.py"],
    )
