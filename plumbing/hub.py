"""What the Hugging Face hub's client raises, as one line that says what to do."""

import contextlib
import re
from collections.abc import Iterator

from plumbing.errors import UserError, first_line

REMEDIES = {  # by the status of the hub's answer
    401: "it knows no such repository, or wants a token for it: see the spelling, or log in with `hf auth login`",
    403: "your token may not do that: ask for access on the repository's page, or make a token that may on the hub's "
    "page of settings, then `hf auth login`",
    404: "it has no such repository, file or commit, or hides it from you: see the spelling, or log in with "
    "`hf auth login`",
    429: "you have asked too often: wait some minutes",
}

XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")  # as hf_xet tells it, which uploads large files


@contextlib.contextmanager
def in_one_line(doing: str) -> Iterator[None]:
    """Turn what the hub, its client or the network raises into a `UserError`; `doing` is what failed."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(f"{doing}: {first_line(error)}; a name on the hub is OWNER/NAME") from error
    except Exception as error:  # whatever the network raised
        raise UserError(f"{doing}: {cause_of(error)}") from error


def cause_of(error: Exception) -> str:
    """What went wrong and what to do, from the first error in the chain that tells: an answer, or none."""
    if told := answer_of(error):
        return told
    said, remedy = first_line(chain(error)[-1]), "give the command again"
    if "xet" in said.lower():
        remedy += ", with HF_HUB_DISABLE_XET=1 where a firewall is in the way"
    return f"the hub does not answer, or the network broke off ({said}): {remedy}"


def answer_of(error: Exception) -> str:
    """What the hub answered and what to do, by the first error in the chain that tells; "" where it did not answer."""
    from huggingface_hub import errors

    for one in chain(error):
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set: unset it, where there is a network"
        if isinstance(one, errors.HfHubHTTPError) and one.response is not None:
            return answered(one.response.status_code)
        if told := XET_STATUS.search(str(one)):
            return answered(int(told[1]))
    return ""


def chain(error: Exception) -> list[Exception]:
    """An error and those that it was raised from."""
    found = [error]
    while isinstance(cause := found[-1].__cause__, Exception):
        found.append(cause)
    return found


def answered(status: int) -> str:
    """What the hub's answer means, and what to do."""
    return f"the hub answers {status}: {REMEDIES.get(status, 'that is its fault: give the same command again later')}"
