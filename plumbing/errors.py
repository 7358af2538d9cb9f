"""The one kind of error that a user is shown."""

import difflib
from argparse import ArgumentTypeError
from collections.abc import Iterable


def first_line(error: Exception) -> str:
    """The first line of an error's message, to be quoted in one of ours; two, where the first ends in a colon."""
    kind = type(error).__name__
    lines = (str(error).strip() or kind).splitlines()
    said = " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])[:200]
    if "ignore_mismatched_sizes" in said:  # transformers' advice on how to draw them at random
        said = "its weights have other shapes than its configuration says"
    return f"{kind}: {said}" if isinstance(error, LookupError | TypeError | AttributeError) else said


class UserError(ArgumentTypeError):
    """A user's mistake: its message is one line that says what to type instead; the exit code is 2.

    It is an error of argparse's, so that argparse names the flag where the type of an argument raises it.
    """


def did_you_mean(name: str, known: Iterable[str], alike: float, most: int = 3) -> str:
    """'did you mean A or B? ' of the known names that are `alike` (1: the same) in whichever case, or nothing."""
    spelled = {other.lower(): other for other in sorted(known) if other != name}
    close = [spelled[other] for other in difflib.get_close_matches(name.lower(), spelled, most, alike)]
    return f"did you mean {' or '.join(close)}? " if close else ""
