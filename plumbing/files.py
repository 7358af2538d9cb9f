"""Files that are written whole or not at all, and that outlast a power cut once they are."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbing.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Header = dict[str, Any]  # JSON that was read

HERE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[
    :6
]  # this machine, in the names of temporary files
TEMPORARY = (".*.tmp*", ".tmp*")  # what a killed process may leave: our temporary names, and safetensors'


def cache_folder() -> Path:
    """The toolkit's folder in the user's cache, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shared-concepts"


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def beside(path: Path) -> Path:
    """A temporary name to write a file under; a new one each time, as several processes may write one file at once.

    It names the machine and the process, so that the next writer can tell what a killed one left.
    """
    return path.with_name(f".{path.name}.tmp{HERE}-{os.getpid()}-{secrets.token_hex(2)}{path.suffix}")


def remove_left(path: Path):
    """Remove the temporary files of a file that killed processes of this machine left."""
    start = f".{path.name}.tmp{HERE}-"
    for name in os.listdir(path.parent):
        if name.startswith(start) and not is_alive(int(name.removeprefix(start).partition("-")[0])):
            (path.parent / name).unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there becomes `path` in one step, or not at all.

    A link stays and the file that it names is replaced; a pipe or a device is written to directly. Its folder is made
    where it is missing.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    make_folder(path.parent)
    remove_left(path)
    temporary = beside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str):
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_again(path: Path, content: bytes):
    """Write whole or not at all what can be made again: nothing waits until it would outlast a power cut.

    Error: the disk is full.
    """
    temporary = beside(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_full(error):
            raise UserError(
                f"the disk of {path.parent}/ is full: free some, then repeat the command"
            ) from error
        raise


def sync(path: Path):
    """Return when a file's content, or a folder's list of entries, would outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not sync folders
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def make_folder(path: Path):
    """Make a folder and those above it, where they are missing, so that they outlast a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def check_writable(path: Path):
    """Raise OSError where `replacing` could not write a file, or make its folder; nothing is left."""
    path = Path(os.path.realpath(path))
    if not path.exists() or path.is_file():
        folder = next(place for place in path.parents if place.exists())
        temporary = beside(folder / path.name)
        temporary.touch()
        temporary.unlink(missing_ok=True)


def write_state(file: Path, header: Mapping[str, object], tensors: "dict[str, Tensor]"):
    """Write what a killed command resumes from: a JSON header and named torch tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(file) as temporary:
        try:
            save_file(tensors, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as error:  # it has the system's error in words only
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error


def read_header(file: Path) -> Header | None:
    """The header that `write_state` wrote, without the tensors; None where there is no file."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as state:
            return json.loads(state.metadata()["header"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): add --overwrite to start afresh, or choose another --runname"
        ) from error


def read_state(file: Path, start: str = "") -> "tuple[Header, dict[str, Tensor]] | None":
    """The header and those tensors that `write_state` wrote whose names start so, or None where there is no file."""
    from safetensors import safe_open

    header = read_header(file)  # refuses a file that is cut, too
    if header is None:
        return None
    with safe_open(file, framework="pt") as state:
        names = state.keys()
        return header, {name: state.get_tensor(name) for name in names if name.startswith(start)}
