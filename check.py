"""Try an encoder, or look at a data set, before hours are spent; alone, print the table of encoders."""

import argparse
import json
import time
from pathlib import Path

import data
from encoders.hub import DINOV2
from plumbing import files
from plumbing.commandline import Parser, add_flags, chosen, output, picture, script
from plumbing.errors import UserError
from showing import checks
from wrappedmodels import REGISTRY, find_row, load


@script
def main(argv: list[str] | None = None):
    """Print the table of encoders, what a data set holds, or how encoders fare; returns the last of these."""
    arguments = parse(argv)
    pairs = open_data(arguments) if arguments.dataset else None
    shown = look_at_data(pairs, arguments.sheet, arguments.json) if pairs else None
    if arguments.encoder or arguments.model:
        return try_encoders(arguments, pairs)
    if pairs is None:
        shown = checks.markdown() if arguments.markdown else checks.table()
        print(shown)
    return shown


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, __file__)
    parser.add_argument(
        "--encoder",
        metavar="CHECKPOINT",
        help="load this encoder (or, by a row's name, its default), run one item through it (of --dataset, if given), and put it to the self-test",
    )
    parser.add_argument("--model", metavar="NAME", help="its row; by default every row that names it")
    parser.add_argument("--blocks", metavar="PATH", help="the list of modules to hook, by its dotted path")
    parser.add_argument("--token", choices=("own", "first", "mean"), default="own", help="which is recorded")
    parser.add_argument("--device", default="cpu", help="where to run it")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/encoders.md has it")
    add_flags(parser, data.FLAGS)
    parser.add_argument(
        "--sheet", type=picture, metavar="FILE.png", help="contact sheet (imgs/data_NAME.png)"
    )
    parser.add_argument("--json", type=output, metavar="FILE", help="write what a data set holds there")
    arguments = parser.parse_args(argv)
    require_use(arguments)
    return arguments


def require_use(arguments: argparse.Namespace):
    """Refuse flags that nothing would heed: an encoder's without an encoder, a data set's without a data set."""
    encoder = arguments.encoder or arguments.model
    if arguments.blocks and not encoder:
        raise UserError(f"--blocks {arguments.blocks} is of an encoder: add --encoder CHECKPOINT")
    defaults = {flag.removeprefix("--"): options.get("default") for flag, options in data.FLAGS.items()}
    for flag in ("sheet", "json", *defaults):
        value = getattr(arguments, flag)
        if value and value != defaults.get(flag) and not arguments.dataset:
            raise UserError(f"--{flag} {getattr(arguments, flag)} is of a data set: add --dataset NAME")


def open_data(arguments: argparse.Namespace) -> data.Pairs:
    """The data set, without its unreadable items: the point is to find them."""
    return data.open_pairs(**chosen(arguments, data.FLAGS) | {"skip_unreadable": True})


def look_at_data(pairs: data.Pairs, sheet: Path | None, report: Path | None) -> dict:
    """Print what a data set holds, draw its contact sheet where it has pictures, and write a report."""
    pictured = any(sample.side == "image" for sample in pairs.samples)
    if sheet and not pictured:
        raise UserError(f"--sheet {sheet}: data set {pairs.name!r} has no pictures; leave it out")
    sheet = sheet or picture(f"imgs/data_{pairs.name}.png") if pictured else None
    held = checks.holdings(pairs)
    document = held._asdict()
    print(checks.holdings_table(held))
    if sheet:
        document["contact_sheet"] = draw_sheet(pairs, sheet)
    if report:
        files.write_text(report, json.dumps(document, indent=1) + "\n")
    return document


def draw_sheet(pairs: data.Pairs, file: Path) -> str:
    """Draw a data set's contact sheet and say where it is."""
    from showing import sheets

    sheets.save(sheets.contact_sheet(pairs), file)
    print(f"{'contact sheet':<20}{file}")
    return str(file)


def try_encoders(arguments: argparse.Namespace, pairs: data.Pairs | None) -> list:
    """Load an encoder by each row that may be meant, and print its trial."""
    from encoders.trial import try_encoder

    trials = []
    checkpoint = None if arguments.encoder in REGISTRY else arguments.encoder
    for model in [arguments.model] if arguments.model else rows_of(arguments.encoder):
        if not (checkpoint or find_row(model).checkpoint):
            raise UserError(f"{model} is a row for many encoders: give --encoder CHECKPOINT --model {model}")
        started = time.perf_counter()
        encoder = load(
            model,
            checkpoint,
            token=arguments.token,
            blocks=arguments.blocks,
            device=arguments.device,
        )
        loaded = time.perf_counter() - started
        trials.append(try_encoder(encoder, pairs))
        seconds = f"  seconds   {loaded:.1f} to load, {trials[-1].seconds:.2f} for one item"
        print("\n".join([*trials[-1].lines(), seconds]))
    return trials


def rows_of(checkpoint: str) -> list[str]:
    """The rows that name a checkpoint as theirs, or the row of this name."""
    if checkpoint in REGISTRY:
        return [checkpoint]
    rows = [name for name, row in REGISTRY.items() if checkpoint in (row.checkpoint, *row.checkpoints)]
    rows = rows or ["DinoV2"] * (checkpoint in DINOV2)
    if not rows:
        raise UserError(
            f"{checkpoint!r} could be any kind of encoder: add --model, one of {', '.join(REGISTRY)}"
        )
    return rows


if __name__ == "__main__":
    main()
