"""The command line: what every script shares of argument parsing and of reporting a user's mistake."""

import argparse
import functools
import sys
from argparse import ArgumentTypeError as UserError  # raised anywhere: one line on stderr, exit code 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line that says what to type instead."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        complain(f"{message} (see `uv run {self.prog} --help`)")


def complain(message: str):
    """Print one line on standard error and leave with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def script(main):
    """Decorate a script's `main(argv=None)`: a `UserError` from anywhere below ends in `complain`."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except UserError as mistake:
            complain(str(mistake))

    return wrapped


def positive(text: str) -> int:
    """An argument type: a whole number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number of at least 1")
    return int(text)
