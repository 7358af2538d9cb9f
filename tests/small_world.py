"""An encoder and a data set of a few lines, for tests of what is built on their interfaces."""

import argparse
import zlib
from types import SimpleNamespace

import torch

import features
from encoders.wrapper import Activations


class SmallPairs:
    """Captions `row 0`, `row 1`, …; the number is all there is to a sample."""

    name = "small"

    def __init__(self, n_samples=6, captions=lambda row: [str(row)], source=None):
        self.caption_of, self.n_samples = captions, n_samples
        self.source = source or {"dataset": "small"}
        self.unreadable = []

    def __len__(self):
        return self.n_samples

    @property
    def samples(self):
        return [
            SimpleNamespace(id=str(row), file=f"{row}.png", captions=[str(row)]) for row in range(len(self))
        ]

    @property
    def fingerprint(self):
        return features.fingerprint((sample.id, sample.captions[0]) for sample in self.samples)

    def file_stamp(self):
        return "the same"

    def items(self, row, side):
        assert side == "text"
        return self.caption_of(row)


class SmallEncoder:
    """Three layers of four tokens, of which the last is padding; the second one is recorded,
    or what `recorded` says (None: the mean of the first three).

    A token is a mixture of a few of 12 fixed directions, drawn from the caption, far from the origin: `offset`
    times its spread. So it is worth centring, and a sparse code can fit it. Of `broken_row` all is NaN, or what
    `broken` says: a layer, a token and a value.
    """

    model, checkpoint, modality, token, n_layers = "Small", "none", "text", "own", 3

    def __init__(self, d_in=8, offset=10.0, recorded=1, broken_row=None, broken=None):
        random = torch.Generator().manual_seed(7)
        self.directions = torch.randn(3, 12, d_in, generator=random)
        self.offset = offset * torch.randn(3, d_in, generator=random)
        self.recorded, self.broken_row, self.broken = recorded, broken_row, broken

    def file_stamp(self):
        return "small"

    def resolve_layers(self, layers):
        return list(range(3)) if layers is None else sorted(layer % 3 for layer in layers)

    widths = frozenset()  # it declares none

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


ARGUMENTS = {
    "model": "ClipText",
    "checkpoint": None,
    "blocks": None,
    "random_weights": None,
    "token": "own",
    "layers": ["all"],
    "device": "cpu",
    "top_k": [2],
    "expansion_factor": 3,
    "activation": "topk",
    "batch_size": 16,
    "epochs": 1,
    "lr": None,
    "recipe": "ours",
    "sae": None,
    "precision": "float32",
    "checkpoint_every": 60.0,
    "seeds": [0],
    "data_seed": None,
    "command": ["train_text.py"],
    "runname": "run",
    "overwrite": False,
    "workers": 0,
}


def arguments(**changes):
    """What a train script's command line gives, with `changes`."""
    return argparse.Namespace(**{**ARGUMENTS, **changes})
