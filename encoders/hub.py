"""Find a checkpoint by its name: a folder, the Hugging Face cache, or the hub."""

import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

from plumbing.errors import UserError, first_line
from plumbing.hub import answer_of

ROOT = Path(__file__).resolve().parent.parent

LFS = b"version https://git-lfs"  # the first bytes of a Git LFS pointer

Built = TypeVar("Built")


def from_hub(build: Callable[[], Built], name: str, repository: str) -> Built:
    """Call `build` on cached files alone; where that fails and the hub answers, call it again with downloads.

    Without a network the hub's clients take 20 seconds a file, cached or not, so they are not asked first.
    An empty `repository`: nothing can be downloaded.
    Error: the name is unknown, neither cached nor reachable, or its files do not load.
    """
    from huggingface_hub import constants

    broken = foreign_errors()
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return build()
    except broken as error:
        missing = error
    finally:
        constants.HF_HUB_OFFLINE = offline
    if not repository:
        refuse_pointers(name.removeprefix("local-dir:"))
        raise UserError(f"{name!r} cannot be loaded: {first_line(missing)}") from missing
    reach(name, repository, offline, missing)
    try:
        return build()
    except broken as error:
        raise UserError(f"{name!r} cannot be loaded: {answer_of(error) or first_line(error)}") from error


def foreign_errors() -> tuple[type[Exception], ...]:
    """The errors of libraries on files that are damaged, of another version, or need a package that is missing."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    of_values = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
    return (*of_values, AssertionError, ImportError, SafetensorError, UnpicklingError, StrictDataclassError)


class UnknownName(UserError):
    """A name that is neither a folder, nor cached, nor found on the hub; `hint`: what else to try."""

    def __init__(self, name: str, message: str, hint: str):
        super().__init__(f"{message}; {hint}")
        self.name, self.message, self.hint = name, message, hint


class OtherRow(UserError):
    """A checkpoint that belongs to another row of the registry.

    `model_type`: as transformers calls it; "" where only a row for any model can load it.
    """

    def __init__(self, message: str, model_type: str = ""):
        super().__init__(message)
        self.model_type = model_type


def reach(name: str, repository: str, offline: bool, missing: Exception):
    """Ask the hub once, for at most five seconds, whether it has `repository`. Error: it has not."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    fetch = f"fetch it where there is a network with `hf download {repository}`"
    if offline:
        # the libraries raise one of these where a file is missing; any other: it is there and does not load
        cause = "" if isinstance(missing, OSError | RuntimeError) else f" ({first_line(missing)})"
        raise UnknownName(
            name, f"{name!r} is not in the Hugging Face cache{cause} and HF_HUB_OFFLINE is set", fetch
        )
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=5)
    except EntryNotFoundError:
        return  # the repository is there, and keeps its configuration under another name
    except GatedRepoError as error:
        raise UserError(
            f"{name!r} is gated: ask for access on its page of the hub, then `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownName(
            name,
            f"{name!r} is neither a folder nor a model that the Hugging Face hub shows you",
            "for a private or gated one run `hf auth login`",
        ) from error
    except Exception as error:  # whatever the network raised
        if told := answer_of(error):
            raise UserError(f"{name!r} is not in the Hugging Face cache, and {told}") from error
        raise UnknownName(
            name,
            f"{name!r} is not in the Hugging Face cache and the hub does not answer ({first_line(error)})",
            fetch,
        ) from error


def refuse_pointers(folder: str, patterns: tuple[str, ...] = ("*",)):
    """Refuse a folder in which a file that matches one of `patterns` is a Git LFS pointer."""
    for file in (
        file for pattern in patterns for file in sorted(Path(folder).glob(pattern)) if file.is_file()
    ):
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise UserError(f"{file} is a Git LFS pointer, not the file: run `git lfs pull` in {folder}")


@contextlib.contextmanager
def quiet():
    """Silence the libraries' warnings about unused weights; errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def file_stamp(checkpoint: str) -> str:
    """What changes when a checkpoint's files do: sha256 of a folder's file names, sizes and dates, or the commit in the
    hub's cache; '' where there is neither.
    """
    if folder := local_folder(checkpoint):
        found = sorted((file.name, file.stat()) for file in Path(folder).iterdir() if file.is_file())
        lines = (f"{name} {state.st_size} {state.st_mtime_ns}\n" for name, state in found)
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    return hub_commit(DINOV2.get(checkpoint, checkpoint).removeprefix("hf-hub:"))


def hub_commit(repository: str) -> str:
    """The commit at which a repository of the hub lies in the cache, or ''."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "open_clip_config.json"):
        with contextlib.suppress(ValueError):  # no repository's name
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found).parent.name
    return ""


def local_folder(name: str) -> str:
    """The folder that `name` means, looked for here and then in the repository; '' where there is none."""
    path = name.removeprefix("local-dir:")
    path = path.replace("demo/encoders/", "toyworld/weights/")  # where old runs say that the demo's are
    folder = next((folder for folder in (Path(path), ROOT / path) if folder.is_dir()), None)
    if folder is None and name != path:
        raise UserError(f"there is no folder {path!r}; write local-dir:FOLDER of an open_clip model")
    return str(folder or "")


# torch.hub's names of DINOv2, without torch.hub: it runs code from the network.
DINOV2 = {
    f"dinov2_vit{letter}14{suffix}": f"facebook/dinov2-{'with-registers-' if suffix else ''}{size}"
    for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    for suffix in ("", "_reg")
}
