"""The token cache: the recorded tokens of rows seen in training, on disk, so that recording encodes no row twice."""

import errno
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encoders.wrapper import Activations
from plumbing import files


class RecordedTokens:
    """The one recorded token of each row at every layer, in a file; rows that record several tokens are left out.

    The file holds a row's vectors together, float32 [layer, d_in], and after those of all rows one byte a row: 1 where
    the row is there. Processes of one machine may share the file. It is only a cache: when the disk fills up it is
    removed, for all processes, and its rows are encoded again.
    """

    def __init__(self, file: Path, n_rows: int, widths: dict[int, int]):
        self.file, self.n_rows, self.widths = file, n_rows, widths
        self.row_bytes = 4 * sum(widths.values())
        self.open = os.open(file, os.O_RDWR | os.O_CREAT)

    @staticmethod
    def nbytes(n_rows: int, widths: dict[int, int]) -> int:
        """The size of the file with all rows, in bytes."""
        return n_rows * (4 * sum(widths.values()) + 1)

    def write(self, batch: Activations):
        """Write the recorded tokens of a batch."""
        if os.fstat(self.open).st_nlink == 0:  # another process found the disk full
            return
        chosen, items, _ = batch.recorded_tokens()
        rows = np.asarray(batch.rows)[items]
        alone = np.bincount(rows)[rows] == 1
        chosen = chosen[torch.from_numpy(alone).to(chosen.device)]
        vectors = torch.cat([batch.flat(layer, chosen) for layer in self.widths], dim=1).cpu().numpy()
        try:
            for row, vector in zip(rows[alone].tolist(), vectors, strict=True):
                self._write(vector.tobytes(), row * self.row_bytes)
                self._write(b"\1", self.n_rows * self.row_bytes + row)
        except OSError as error:
            if not files.is_full(error):
                raise
            # Remove the file before emptying it: another process may be about to write a row's flag, which must
            # not land in a file that is still read.
            self.file.unlink(missing_ok=True)
            os.ftruncate(self.open, 0)

    def _write(self, content: bytes, where: int):
        if os.pwrite(self.open, content, where) < len(content):  # the disk got full within the write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file)

    def present(self) -> Bool[np.ndarray, " row"]:
        """Which rows are there."""
        found = os.pread(self.open, self.n_rows, self.n_rows * self.row_bytes)
        return np.frombuffer(found.ljust(self.n_rows, b"\0"), dtype=bool)

    def read(self, rows: list[int]) -> dict[int, Float[Tensor, "row d_in"]]:
        """The recorded tokens of rows, all of which are there, by layer."""
        found = b"".join(os.pread(self.open, self.row_bytes, row * self.row_bytes) for row in rows)
        vectors = torch.frombuffer(bytearray(found), dtype=torch.float32).view(len(rows), -1)
        return dict(zip(self.widths, vectors.split(list(self.widths.values()), dim=1), strict=True))

    def sync(self):
        """Return when all that was written would outlast a power cut."""
        os.fsync(self.open)
        files.sync(self.file.parent)

    def close(self):
        """Close the file."""
        os.close(self.open)
