"""The command line: what every script shares of argument parsing and of reporting a user's mistake."""

import argparse
import difflib
import functools
import os
import select
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plumbing import files  # threads: before torch is imported
from plumbing.errors import UserError

Flags = Mapping[str, Mapping[str, Any]]  # flag: the keyword arguments of argparse's `add_argument`

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".webp")  # that matplotlib draws


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line that says what to type instead."""

    def __init__(self, description: str, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def error(self, message: str):
        complain(f"{message} (see `uv run {self.prog} --help`)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every flag but those of None and False."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def complain(message: str):
    """Print one line on standard error and leave with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def script(main):
    """Decorate a script's `main(argv=None)`: a `UserError` from anywhere below ends in `complain`.

    Characters that the console cannot show are printed as "?". Where the reader of a pipe has left (`| head`), the
    script ends without a word.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        try:
            return explained(main, argv)
        except BrokenPipeError:
            if not close_broken_pipes():
                raise
            raise SystemExit(141) from None  # as a program that SIGPIPE ends

    return wrapped


def explained(main, argv):
    """Call `main`; a mistake, or the user's interruption, ends in one line."""
    try:
        return main(argv)
    except UserError as mistake:
        complain(str(mistake))
    except KeyboardInterrupt:
        print("interrupted: give the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        print(end="", flush=True)  # a reader that has left is noticed here, where it is dealt with


def close_broken_pipes() -> bool:
    """Send the outputs whose readers have left to the null device; returns whether there are any."""
    left = [stream for stream in (sys.stdout, sys.stderr) if reader_has_left(stream)]
    for stream in left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(left)


def reader_has_left(stream) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # no such system, or no file behind the stream
        return False
    return bool(poll.poll(0))  # with no events asked for, only errors are reported


def positive(text: str) -> int:
    """An argument type: a whole number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """An argument type: a whole number of at least zero."""
    if not text.isdecimal():
        raise UserError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def output(text: str) -> Path:
    """An argument type: a file to write. Its folder is made, and the file is tried, before the work starts."""
    path = Path(text)
    try:
        if path.is_dir():
            raise UserError(f"{text} is a folder: name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(path)
    except OSError as error:
        raise UserError(f"{text} cannot be written: {error.strerror}: {error.filename}") from error
    return path


def picture(text: str) -> Path:
    """An argument type: a picture to write, as PNG where the name has no suffix."""
    path = output(text)
    if path.suffix.lower() not in ("", *PICTURES):
        raise UserError(
            f"{text} is no kind of picture that can be drawn: end it in one of {' '.join(PICTURES)}"
        )
    return path


def folder(text: str) -> Path:
    """An argument type: a folder to write into; it is there, or can be made."""
    path = Path(text)
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{text} is no folder: name another")
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{text} cannot be written into: {nearest} is in the way; name another")
    return path


def layer(text: str) -> int | str:
    """An argument type: a layer's number, or "all"."""
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{text!r} is no layer: give numbers (-1 is the last), or all") from None


def above_zero(text: str) -> float:
    """An argument type: a finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{text!r} is not a number above 0")
    return number


def add_flags(parser: Parser, flags: Flags):
    """Add flags that are written as data."""
    for flag, options in flags.items():
        parser.add_argument(flag, **options)


def chosen(arguments: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """The values of these flags alone, as the keyword arguments of the function that they are for."""
    names = [flag.removeprefix("--") for flag in flags]
    return {name: getattr(arguments, name) for name in names}


def training_arguments(
    argv, description: str, rows: dict, default_model: str, data_flags: Flags, script: str | None = None
):
    """Parse a train script's command line; `rows` are the encoders of the registry that it takes.

    In what is returned, `command` is what was typed, `script` first; `model`, `checkpoint` and `dataset` are settled: without --model the demo's encoder, and
    without --dataset the demo's data for an encoder of the demo and COCO for every other.
    """
    parser = Parser(description, script)
    add_encoder_arguments(parser, rows)
    add_flags(parser, data_flags)
    add_recipe_arguments(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(words)
    arguments.command = [parser.prog, *words]
    choose_encoder(arguments, rows, default_model)
    if arguments.layers and "all" in arguments.layers and len(arguments.layers) > 1:
        raise UserError("--layers all is all of them: leave the numbers out, or all")
    if arguments.sae and (len(arguments.seeds) > 1 or arguments.top_k or arguments.expansion_factor):
        raise UserError(
            "--sae brings its own k, width and seed: leave --top_k, --expansion_factor and --seeds out"
        )
    if arguments.sae and not Path(arguments.sae).is_dir():
        raise UserError(f"--sae {arguments.sae} is no folder: name one in SAELens' layout, or one of several")
    arguments.dataset = arguments.dataset or ("demo" if arguments.model.startswith("Demo") else "coco")
    return arguments


def add_encoder_arguments(parser: Parser, rows: dict):
    """Which encoder: `rows` are those of the registry that the script takes."""
    parser.add_argument(
        "--model", metavar="NAME", help=f"the kind of encoder: {', '.join(rows)}; by default the demo's CLIP"
    )
    parser.add_argument(
        "--checkpoint", help="its weights: a hub name or a folder; by default the model's own"
    )
    for flag in sorted({row.flag for row in rows.values()} - {"--checkpoint", ""}):
        parser.add_argument(flag, metavar="CHECKPOINT", help="another spelling of --checkpoint")
    parser.add_argument(
        "--random_weights", type=natural, metavar="SEED", help="draw the encoder's weights: a control"
    )
    parser.add_argument(
        "--token", choices=("own", "first", "mean"), default="own", help="which token is recorded"
    )
    parser.add_argument(
        "--layers",
        type=layer,
        nargs="+",
        metavar="N",
        help="the blocks to hook, -1 being the last, or all; by default the last only (with --sae: all there are)",
    )
    parser.add_argument(
        "--blocks", metavar="PATH", help="the modules to hook, where they are not found alone"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; by default a GPU where there is one")


def choose_encoder(arguments, rows: dict, default_model: str):
    """Fill in `model` and `checkpoint` from whichever of the flags was typed; the result is in `arguments`."""
    flags = {row.flag.removeprefix("--") for row in rows.values()} - {"checkpoint", ""}
    typed = {flag: value for flag in sorted(flags) if (value := getattr(arguments, flag)) is not None}
    if len(typed) + (arguments.checkpoint is not None) > 1:
        raise UserError(f"one encoder a run: give --checkpoint or --{next(iter(typed))}, not several of them")
    flag, value = next(iter(typed.items()), (None, arguments.checkpoint))
    if arguments.model is None:
        fitting = [name for name, row in rows.items() if flag and row.flag == f"--{flag}"]
        fitting += [name for name, row in rows.items() if value in row.checkpoints]
        if value and not fitting:
            raise UserError(
                f"--checkpoint {value!r} could be any kind of encoder: add --model, one of {', '.join(rows)}"
            )
        arguments.model = fitting[0] if fitting else default_model
    if arguments.model not in rows:
        raise UserError(f"--model {arguments.model!r} is unknown here; type {likely(arguments.model, rows)}")
    own = rows[arguments.model].flag
    if flag and own != f"--{flag}":
        raise UserError(f"--{flag} does not go with --model {arguments.model}: type {own} or --checkpoint")
    arguments.checkpoint = value


def likely(name: str, known: Iterable[str]) -> str:
    """The known names that a mistyped one is close to, or else all."""
    close = difflib.get_close_matches(name, known, 3, 0.8)
    return " or ".join(close) or f"one of {', '.join(known)}"


def add_recipe_arguments(parser: Parser):
    """How the SAEs are trained and recorded."""
    parser.add_argument(
        "--top_k",
        type=positive,
        nargs="+",
        help="active latents a token; several: a run for each; by default 32, 16 for the demo's encoders",
    )
    parser.add_argument(
        "--expansion_factor",
        type=positive,
        help="latents for each dimension of the activations; by default 8, 4 for the demo's encoders",
    )
    parser.add_argument(
        "--activation", choices=("topk", "relu"), default="topk", help="the codes that are recorded"
    )
    parser.add_argument("--batch_size", type=positive, default=32, help="samples in a step")
    parser.add_argument("--epochs", type=positive, default=1, help="passes over the data")
    parser.add_argument(
        "--lr",
        type=above_zero,
        help="peak learning rate; by default set by the SAE's width and the number of steps",
    )
    parser.add_argument(
        "--seeds",
        "--seed",
        type=natural,
        nargs="+",
        default=[0],
        help="of the SAEs' first weights; several: a run for each",
    )
    parser.add_argument(
        "--data_seed",
        type=natural,
        help="of the data's order and of the held-out samples, one for all runs; by default the first seed",
    )
    parser.add_argument("--recipe", choices=("ours", "original"), default="ours", help="how SAEs are trained")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the SAEs' matrix products"
    )
    parser.add_argument("--sae", metavar="DIR", help="record with these SAEs (SAELens' layout), train none")
    parser.add_argument(
        "--checkpoint_every",
        type=above_zero,
        default=60.0,
        metavar="SECONDS",
        help="how often to keep what a killed run goes on from; seldomer where that is slow",
    )
    parser.add_argument(
        "--runname", help="the run's folder in sae_features/; by default encoder and data set"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run of that name")
    parser.add_argument("--workers", type=natural, default=0, help="processes that read and decode items")
