"""The one kind of error that a user is shown."""

from argparse import ArgumentTypeError


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
