"""Try an encoder, or look at a data set, before hours are spent; alone, print the table of encoders."""

import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import data
from data import Pairs
from encoders.hub import DINOV2
from encoders.inputs import sample_item
from encoders.self_test import runs, self_test
from encoders.wrapper import WrappedModel
from plumbing.commandline import Parser, add_flags, chosen, script
from plumbing.errors import UserError
from wrappedmodels import REGISTRY, load


def describe_data(pairs: Pairs) -> dict[str, Any]:
    """What a data set holds; lengths are [least, median, greatest]."""
    texts = [text for texts in pairs.captions for text in texts]
    return {
        "name": pairs.name,
        "rows": len(pairs),
        "fingerprint": pairs.fingerprint,
        "first_id": pairs.ids[0],
        "last_id": pairs.ids[-1],
        "sounds": sum(sample.side == "audio" for sample in pairs.samples),
        "captions_per_row": _spread(len(texts) for texts in pairs.captions),
        "caption_words": _spread(len(text.split()) for text in texts),
        "caption_characters": _spread(map(len, texts)),
        "empty_captions": sum(not text for text in texts),
        "unreadable": pairs.unreadable,
    }


def _spread(numbers: Iterable[int]) -> list[int | float]:
    numbers = sorted(numbers)
    return [numbers[0], statistics.median(numbers), numbers[-1]]


def _table(held: dict[str, Any]) -> str:
    lines = [f"{key.replace('_', ' '):<20}{_cell(value)}" for key, value in held.items()]
    lines += [f"  {item['id']}  {item['path']}: {item['why']}" for item in held["unreadable"]]
    if held["unreadable"]:
        lines.append("rows and fingerprint are without these: give every run --skip_unreadable")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return f"{value[0]:g} to {value[2]:g}, median {value[1]:g}"
    return str(len(value) if isinstance(value, list) else value)


class Checked(NamedTuple):
    """What `check` saw of one encoder."""

    encoder: WrappedModel
    widths: list[int]  # one a layer
    n_tokens: list[int]  # one a layer
    trained: int  # tokens of the last layer that would train an SAE
    recorded: list[int]  # the positions that are recorded, in the last layer
    seconds_to_load: float
    seconds_to_run: float


def check(model: str, checkpoint: str | None, **options) -> Checked:
    """Load one checkpoint and run one picture, caption or sound through it, layer by layer; then its self-test."""
    started = time.perf_counter()
    encoder = load(model, checkpoint, **options)
    loaded = time.perf_counter()
    with runs(encoder.checkpoint):
        batch = encoder.collate([encoder.preprocess(sample_item(encoder.modality))])
        found = [encoder.activations(batch, [layer]) for layer in encoder.resolve_layers(None)[:-1]]
        rerun = time.perf_counter()
        found.append(encoder.activations(batch, [encoder.n_layers - 1]))
    seconds = time.perf_counter() - rerun
    self_test(
        encoder,
        [sample_item(encoder.modality, short=True), sample_item(encoder.modality)],
        [encoder.n_layers - 1],
    )
    shapes = [next(iter(each.layers.values())).shape for each in found]
    return Checked(
        encoder,
        [shape[2] for shape in shapes],
        [shape[1] for shape in shapes],
        int(found[-1].mask.sum()),
        found[-1].recorded_tokens()[0].tolist(),
        loaded - started,
        seconds,
    )


def describe_encoder(checked: Checked) -> str:
    """What `--check` prints of one encoder."""
    encoder, recorded = checked.encoder, checked.recorded
    where = f"token {recorded[0]}" if len(recorded) == 1 else f"{len(recorded)} tokens"
    return os.linesep.join(
        [
            f"{encoder.model} {encoder.checkpoint} ({encoder.modality})",
            f"  blocks    {encoder.n_layers} at {encoder.path}, width {some(checked.widths)}",
            f"  tokens    {some(checked.n_tokens)}, of which {checked.trained} train",
            f"  recorded  {encoder.token}: {where}",
            f"  seconds   {checked.seconds_to_load:.1f} to load, {checked.seconds_to_run:.2f} for one item",
        ]
    )


def some(numbers: list[int]) -> str:
    """Numbers of the layers, once where all are the same."""
    return ", ".join(str(number) for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def rows_of(checkpoint: str) -> list[str]:
    """The rows that name a checkpoint as theirs."""
    rows = [name for name, row in REGISTRY.items() if checkpoint in (row.checkpoint, *row.checkpoints)]
    rows = rows or ["DinoV2"] * (checkpoint in DINOV2)
    if not rows:
        raise UserError(
            f"{checkpoint!r} could be any kind of encoder: add --model, one of {', '.join(REGISTRY)}"
        )
    return rows


TITLES = ("--model", "modality", "default checkpoint", "blocks", "token", "notes")


def cells() -> list[tuple]:
    """The registry's cells, a tuple a row; what a row leaves open is asked of the model."""
    return [
        (name, row.modality, row.checkpoint or "-", row.blocks or "asked", row.token or "asked", row.note)
        for name, row in REGISTRY.items()
    ]


def markdown() -> str:
    """The README's table: the rows that are no demo's, with the paper's checkpoints."""
    lines = [
        "| `--model` | checkpoints (the default in bold) | blocks | recorded token | notes |",
        "| --- " * 5 + "|",
    ]
    for name, _, default, blocks, token, note in cells():
        if not name.startswith("Demo"):
            known = REGISTRY[name].checkpoints or (default,)
            listed = ", ".join(f"**`{one}`**" if one == default else f"`{one}`" for one in known)
            lines.append(
                f"| {name} | {listed if default != '-' else 'yours'} | `{blocks}` | {token} | {note} |"
            )
    return os.linesep.join(lines)


def table() -> str:
    """The registry, a line a row."""
    titles, rows = TITLES, cells()
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    return os.linesep.join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    )


def parse(argv: list[str] | None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--encoder", metavar="CHECKPOINT", help="load this encoder and run one item through it"
    )
    parser.add_argument("--model", metavar="NAME", help="its row; by default every row that names it")
    parser.add_argument("--blocks", metavar="PATH", help="the list of modules to hook, by its dotted path")
    parser.add_argument("--device", default="cpu", help="where to run it")
    parser.add_argument("--markdown", action="store_true", help="print the table as the README has it")
    add_flags(parser, data.FLAGS)
    parser.add_argument("--sheet", metavar="FILE", help="contact sheet (imgs/data_NAME.png)")
    parser.add_argument("--json", metavar="FILE", help="write what a data set holds there")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> Any:
    """Print the table of encoders, try one encoder, or say what a data set holds; returns what it printed."""
    arguments = parse(argv)
    if arguments.dataset:
        return look_at_data(arguments)
    if arguments.encoder or arguments.model:
        return try_encoder(arguments)
    printed = markdown() if arguments.markdown else table()
    print(printed)
    return printed


def try_encoder(arguments: Any) -> list[Checked]:
    """Load an encoder by each row that may be meant, run one item through it and print what it has."""
    rows = [arguments.model] if arguments.model else rows_of(arguments.encoder)
    options = {"blocks": arguments.blocks, "device": arguments.device}
    checked = [check(row, arguments.encoder, **options) for row in rows]
    print(os.linesep.join(describe_encoder(one) for one in checked))
    return checked


def look_at_data(arguments: Any) -> dict[str, Any]:
    """Print what a data set holds and draw its contact sheet."""
    options = chosen(arguments, data.FLAGS) | {"skip_unreadable": True}  # the point is to find them
    pairs = data.open_pairs(**options)
    held = describe_data(pairs)
    if any(sample.side == "image" for sample in pairs.samples):
        from showing import sheets

        sheet = Path(arguments.sheet or Path("imgs", f"data_{pairs.name}.png"))
        sheets.save(sheets.contact_sheet(pairs), sheet)
        held["contact_sheet"] = str(sheet)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    print(_table(held))
    return held


if __name__ == "__main__":
    main()
