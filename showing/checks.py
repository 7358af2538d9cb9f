"""What check.py prints: the table of encoders, and what a data set holds."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from data import Pairs
from sources.rows import Column, Rows
from wrappedmodels import REGISTRY

TITLES = ("--model", "modality", "default checkpoint", "blocks", "token", "notes")


def cells() -> list[tuple[str, ...]]:
    """The registry's cells, a tuple a row; what a row leaves open is asked of the model."""
    return [
        (name, row.modality, row.checkpoint or "-", row.blocks or "asked", row.token or "asked", row.note)
        for name, row in REGISTRY.items()
    ]


def table() -> str:
    """The registry, a line a row."""
    rows = [TITLES, *cells()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def markdown() -> str:
    """The table of docs/encoders.md: the rows that are no demo's, with the paper's checkpoints."""
    lines = [
        "| `--model` | checkpoints (the default in bold) | blocks | recorded token | notes |",
        "| --- " * 5 + "|",
    ]
    for name, _, default, blocks, token, note in cells():
        if not name.startswith("Demo"):
            known = REGISTRY[name].checkpoints or (default,)
            listed = ", ".join(f"**`{one}`**" if one == default else f"`{one}`" for one in known)
            listed = listed if default != "-" else "yours"
            lines.append(f"| {name} | {listed} | `{blocks}` | {token} | {note} |")
    return "\n".join(lines)


class Spread(NamedTuple):
    """The smallest, the middle and the largest of some numbers."""

    least: int
    median: float
    greatest: int

    def __str__(self) -> str:
        return f"{self.least:g} to {self.greatest:g}, median {self.median:g}"


def spread(numbers: Iterable[int]) -> Spread:
    """The spread of some numbers."""
    numbers = sorted(numbers)
    return Spread(numbers[0], statistics.median(numbers), numbers[-1])


class Holdings(NamedTuple):
    """What a data set holds."""

    name: str
    rows: int
    fingerprint: str
    first_id: str
    last_id: str
    sounds: int
    captions_per_row: Spread
    caption_words: Spread
    caption_characters: Spread
    empty_captions: int
    distinct_captions: int
    unreadable: list[dict[str, str]]  # the {"id", "path", "why"} that were left out


def holdings(pairs: Pairs) -> Holdings:
    """Count what a data set holds: all captions of each row, and the words and characters of the chosen ones."""
    every = pairs.samples.with_caption(None) if isinstance(pairs.samples, Rows) else pairs.samples
    texts = [text for texts in pairs.captions for text in texts]
    return Holdings(
        pairs.name,
        len(pairs),
        pairs.fingerprint,
        pairs.ids[0],
        pairs.ids[-1],
        sum(sample.side == "audio" for sample in pairs.samples),
        spread(map(len, Column(every, "captions"))),
        spread(len(text.split()) for text in texts),
        spread(map(len, texts)),
        sum(not text for text in texts),
        len(set(texts)),
        pairs.unreadable,
    )


def holdings_table(held: Holdings) -> str:
    """What a data set holds, a line each, and the items that were left out."""
    counted = held._asdict() | {"unreadable": len(held.unreadable)}
    lines = [f"{key.replace('_', ' '):<20}{value}" for key, value in counted.items()]
    lines += [f"  {item['id']}  {item['path']}: {item['why']}" for item in held.unreadable]
    if held.unreadable:
        lines.append("rows and fingerprint are without these: give every run --skip_unreadable")
    return "\n".join(lines)
