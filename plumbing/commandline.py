"""The command line: argument types, and how every script reports a user's mistake."""

import argparse
import atexit
import functools
import itertools
import os
import re
import select
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbing import files
from plumbing.errors import UserError, did_you_mean

Flags = Mapping[str, Mapping[str, Any]]  # flag: the keyword arguments of argparse's `add_argument`

# A path outside the working folder: alone, or behind =, : or , in a word.
PLACE = re.compile(r"(^|[=:,])((?:/|~|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\)[^=,]*)")

# A flag, also with the dashes that word processors make of --, and no number.
FLAG = re.compile(r"(?!-\.?\d)(-|--|–|—)[^\W\d][\w-]*")

ROOT = Path(__file__).resolve().parent.parent

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".webp")  # what matplotlib can write


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a UserError, with the command that prints the flags, instead of exiting.

    Beyond argparse it says which flag may be meant, and refuses a flag of several values that is given twice, of which
    argparse would silently drop the first ones.
    """

    def __init__(self, description: str | None, file: str):
        """`file`: the script's `__file__`; of `description`, its docstring, the first line is shown."""
        super().__init__(
            prog=Path(file).resolve().relative_to(ROOT).as_posix(),
            description=(description or "").partition("\n")[0],
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        if not {"-h", "--help"} & set(words):
            self._check_flags(words)
        arguments, left = super().parse_known_args(words, namespace)
        if left:
            before = [word for word in words[: words.index(left[0])] if word in self._option_string_actions]
            after = f" after {before[-1]}" if before else ""
            self.error(f"{left[0]!r}{after} is one word too many: leave it out, or quote a value with spaces")
        self._check_outputs(arguments)
        return arguments, left

    def _check_flags(self, words: Sequence[str]):
        """Refuse unknown flags, and those of several values that are given twice."""
        known, given = self._option_string_actions, set()
        for word in itertools.takewhile(lambda word: word != "--", words):
            flag = word.partition("=")[0]
            action = known.get(flag)
            if action in given:
                self.error(f"{flag} is given twice: give all of its values after one")
            if action is not None and action.nargs == "+":
                given.add(action)
            elif action is None and FLAG.fullmatch(flag):
                names = [
                    name for name in known if name.startswith("--") and known[name].help != argparse.SUPPRESS
                ]
                close = did_you_mean("-" + flag.strip("-–—").replace("-", "_"), names, 0.65, most=1)
                self.error(f"{flag} is unknown; {close.strip() or 'the flags are ' + ' '.join(names)}")

    def _check_outputs(self, arguments: argparse.Namespace):
        """Refuse two outputs in one file, of which the second would replace the first."""
        written: dict[Path, str] = {}
        for action in self._actions:
            file = getattr(arguments, action.dest, None)
            if action.type in (output, picture) and file:
                flag, path = action.option_strings[0], file.absolute()
                if path in written:
                    self.error(f"{written[path]} and {flag} both write {file}: name another file for one")
                written[path] = flag

    def error(self, message: str):
        raise UserError(f"{message} (see `uv run {self.prog} --help`)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help text that ends in the flag's default, unless that is None, False or an empty list."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def complain(message: str):
    """Print one line on standard error and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def script(main):
    """Decorate a script's `main(argv=None)`: a `UserError` from anywhere below ends in `complain`.

    Characters that the console cannot show are printed as "?". Where a pipe's reader has gone (`| head`), the script
    exits silently with code 141.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        if not sys.stderr.isatty():  # a log, which the bars of downloads would fill
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            return explained(main, argv)
        except BrokenPipeError:
            if not close_broken_pipes():
                raise
            raise SystemExit(141) from None  # 128 + SIGPIPE, as the shell reports it
        except BaseException:
            leave_at_once()
            raise

    return wrapped


def leave_at_once():
    """Let a process of several that has failed exit without a farewell: of NCCL's the others have to take part in it,
    who may be waiting for what this one was to send.
    """
    if torch := sys.modules.get("torch"):
        atexit.unregister(torch.distributed.destroy_process_group)


def explained(main, argv):
    """Call `main`. A UserError ends in one line and exit code 2, Ctrl-C in one line and exit code 130."""
    try:
        return main(argv)
    except UserError as mistake:
        complain(str(mistake))
    except KeyboardInterrupt:
        print("interrupted: give the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        print(end="", flush=True)  # raises BrokenPipeError now, while `script` can still catch it


def close_broken_pipes() -> bool:
    """Redirect the standard streams whose pipe has no reader to the null device; returns whether there were any."""
    left = [stream for stream in (sys.stdout, sys.stderr) if reader_has_left(stream)]
    for stream in left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(left)


def reader_has_left(stream) -> bool:
    """Whether a stream is a pipe without a reader."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # Windows has no poll; a captured stream has no file
        return False
    return bool(poll.poll(0))  # no events are asked for, so that only errors are reported


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
    """An argument type: a file to write. Writing is tried before the work starts; its folder is made when it is written."""
    path = Path(text)
    try:
        if path.is_dir():
            raise UserError(f"{text} is a folder: name a file in it")
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
    """An argument type: a folder to write into, which exists or can be made."""
    path = Path(text)
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{text} is no folder: name another")
    try:
        files.check_writable(path / "file")
    except OSError as error:
        raise UserError(
            f"{text} cannot be written into: {error.strerror}: {error.filename}; name another"
        ) from error
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


def share(text: str) -> float:
    """An argument type: a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise UserError(f"{text!r} is not a number from 0 to 1")
    return number


def add_flags(parser: Parser, flags: Flags):
    """Add the flags of a table to a parser."""
    for flag, options in flags.items():
        parser.add_argument(flag, **options)


def chosen(arguments: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """{name: value} of these flags alone, to be passed on as keyword arguments."""
    names = [flag.removeprefix("--") for flag in flags]
    return {name: getattr(arguments, name) for name in names}


def without_folders(word: str) -> str:
    """A word of a command with each absolute path, or path from ~ or .., cut to its last name.

    For commands that are published: a path may tell whose machine it is. /home/me/coco becomes coco, and
    --data_root=/home/me/coco becomes --data_root=coco.
    """

    def last(found: re.Match[str]) -> str:
        names = [name for name in re.split(r"[/\\]+", found[2]) if name not in ("", ".", "..", "~")]
        return found[1] + (names[-1] if len(names) > 0 else "")

    return PLACE.sub(last, word)
