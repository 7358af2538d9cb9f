"""Folders that the original code recorded: `layer11.pt`, dense half precision [n_samples, d_sae], and no manifest."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from torch import Tensor

FORMAT_VERSION = 0  # our number for such a folder

BLOCK_ROWS = 4096  # rows that are made sparse at a time


def layers(path: Path) -> list[str]:
    """The folder's files `layer0.pt`, `layer1.pt`, … in depth order; `layer-1.pt` is the last layer."""
    numbers = [re.fullmatch(r"layer(-?\d+)\.pt", file.name) for file in path.glob("layer*.pt")]
    found = [int(match[1]) for match in numbers if match]
    return [f"layer{number}" for number in sorted(found, key=lambda number: (number < 0, number))]


def n_samples(path: Path) -> int:
    """The number of rows of the folder's first layer."""
    return len(_tensor(path, layers(path)[0]))


def parts(path: Path, layer: str) -> "Iterator[tuple[int, Callable[[], csr_array]]]":
    """Yield the number of rows of each block of a layer, and how to read it, in row order."""
    import scipy.sparse

    for block in _tensor(path, layer).split(BLOCK_ROWS):
        yield len(block), lambda block=block: scipy.sparse.csr_array(block.float().numpy())


def _tensor(path: Path, layer: str) -> "Tensor":
    """A layer's features, [n_samples, d_sae], read from disk where they are used. Error: the file holds no such."""
    import pickle

    import torch

    file = path / f"{layer}.pt"
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read as a tensor: {str(error).splitlines()[0]}") from error
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
        raise UserError(f"{file} does not hold one tensor [n_samples, d_sae]")
    return tensor
