"""The part files of a layer's features, `layer11/features-00000.npz`: scipy.sparse CSR float32 [rows, d_sae]."""

import contextlib
import functools
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from plumbing import files
from plumbing.errors import UserError

if TYPE_CHECKING:  # elsewhere only where rows are read or written: importing it takes long
    import scipy.sparse

Csr: TypeAlias = "scipy.sparse.csr_array"  # float32 [row, d_sae]


def write_part(path: Path, layer: str, number: int, rows: Csr):
    """Write part `number` of a layer's features, [rows, d_sae]."""
    import scipy.sparse

    files.make_folder(path / layer)
    rows.sort_indices()
    with files.replacing(path / layer / f"features-{number:05d}.npz") as temporary:
        scipy.sparse.save_npz(temporary, rows.astype("float32"), compressed=False)


def parts(path: Path, layer: str) -> Iterator[tuple[int, Callable[[], Csr]]]:
    """Yield the number of rows of each part file, and how to read it."""
    import numpy as np

    for part in sorted((path / layer).glob("features-*.npz")):
        with naming_damage(part), np.load(part) as arrays:
            n_rows = int(arrays["shape"][0])
        yield n_rows, functools.partial(read_part, part)


def read_part(part: Path) -> Csr:
    """The rows of one part file. Error: the file is damaged."""
    import scipy.sparse

    with naming_damage(part):
        return scipy.sparse.csr_array(scipy.sparse.load_npz(part))


@contextlib.contextmanager
def naming_damage(part: Path) -> Iterator[None]:
    """Name the part file where reading it raises an error."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{part} is damaged ({error}); record the run again with --overwrite") from error
