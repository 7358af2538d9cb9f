"""SAEs of the Hugging Face hub, by name (`--sae OWNER/NAME[/FOLDER][@REVISION]`): fetched into its cache.

A local folder of that name wins. First the small cfg.json of all SAEs is fetched, then the weights of those that are
used. What is in the cache is not fetched again, and where the hub does not answer the cache alone is used.
"""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from plumbing.errors import UserError
from plumbing.hub import in_one_line

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"  # as in sae.py, which imports torch

NAME = re.compile(r"([\w.-]+/[\w.-]+)((?:/[^/@]+)*)/?(?:@([^/@]+))?")


class Place(NamedTuple):
    """Where on the hub SAEs are; `folder` "" is the whole repository, `revision` None its newest commit."""

    repository: str
    folder: str
    revision: str | None

    @property
    def name(self) -> str:
        """OWNER/NAME[/FOLDER][@REVISION]."""
        place = f"{self.repository}/{self.folder}" if self.folder else self.repository
        return f"{place}@{self.revision}" if self.revision else place


def check(name: str):
    """Refuse a name that is neither a folder nor could be one on the hub."""
    if not Path(name).is_dir() and (place_of(name) is None or Path(name).exists()):
        raise UserError(
            f"--sae {name} is no folder: name one in SAELens' layout, or one of several, or OWNER/NAME[/FOLDER] on "
            "the hub"
        )


def place_of(name: str) -> Place | None:
    """The place on the hub that a name says; None where it says none."""
    found = NAME.fullmatch(name)
    return Place(found[1], found[2].strip("/"), found[3]) if found else None


def pinned(name: str) -> str:
    """The name with the commit that was fetched, for run.json; a local folder's stays as it is."""
    place = None if Path(name).is_dir() else place_of(name)
    return place._replace(revision=fetch(place)[1]).name if place else name


def locate(name: str) -> Path:
    """The folder of SAEs that a name says; of those on the hub the configurations are fetched, not the weights."""
    check(name)
    place = None if Path(name).is_dir() else place_of(name)
    return fetch(place)[0] if place else Path(name)


@functools.cache
def fetch(place: Place) -> tuple[Path, str]:
    """Fetch every cfg.json of a place; returns its folder in the cache, and the commit."""
    start = f"{place.folder}/" if place.folder else ""
    snapshot = download(place, [f"{start}{CONFIG_FILE}", f"{start}*/{CONFIG_FILE}"])
    folder = snapshot / place.folder
    if not any(folder.glob(CONFIG_FILE)) and not any(folder.glob(f"*/{CONFIG_FILE}")):
        raise UserError(
            f"--sae {place.name}: no SAE in SAELens' layout ({CONFIG_FILE}) is there{others(place, snapshot.name)}"
        )
    return folder, snapshot.name


def others(place: Place, commit: str) -> str:
    """What to type instead: the folders of the repository that do hold SAEs."""
    from huggingface_hub import HfApi

    with in_one_line(f"--sae {place.name} cannot be listed"):
        files = HfApi().list_repo_files(place.repository, revision=commit)
    folders = [file.removesuffix(f"/{CONFIG_FILE}") for file in files if file.endswith(f"/{CONFIG_FILE}")]
    return f"; {place.repository} has it in {', '.join(sorted(folders)[:8])}" if folders else ""


def fetch_weights(name: str, folders: Iterable[Path]):
    """Fetch the weights of these folders of `name`; a local folder has them already."""
    place = None if Path(name).is_dir() else place_of(name)
    if place is None:
        return
    folder, commit = fetch(place)
    inside = [Path(place.folder, one.relative_to(folder), WEIGHTS_FILE).as_posix() for one in folders]
    download(place._replace(revision=commit), inside)


def download(place: Place, patterns: list[str]) -> Path:
    """Fetch the files of a repository that match; returns the folder of its commit in the cache."""
    from huggingface_hub import snapshot_download

    with in_one_line(f"--sae {place.name} cannot be fetched"):
        return Path(snapshot_download(place.repository, revision=place.revision, allow_patterns=patterns))
