"""Feature sheets: what is drawn, and what is held meanwhile."""

import weakref

import numpy as np
import scipy.sparse
from PIL import Image
from runs import make_run

from showing import sheets


def test_sheets_hold_small_pictures_and_not_the_photographs(tmp_path, monkeypatch):
    """Each whole picture is gone when the next one is read; read again it is not, where features share samples."""
    monkeypatch.chdir(tmp_path)
    codes = np.tile(np.arange(1.0, 10.0)[:, None], (1, 2))
    run = make_run("clip", {"layer0": codes})
    read, alive = [], []

    class Photographs:
        def image(self, row):
            assert all(photograph() is None for photograph in alive)
            read.append(row)
            photograph = Image.new("RGB", (2000, 1000), (25 * row, 0, 0))
            alive.append(weakref.ref(photograph))
            return photograph

    files = sheets.save_sheets(run, "layer0", scipy.sparse.csr_array(codes), [0, 1], Photographs(), tmp_path)
    assert sorted(read) == list(range(9))
    x, y = sheets.GAP + sheets.PICTURE // 2, sheets.TITLE + sheets.PICTURE // 2
    assert [Image.open(file).getpixel((x, y)) for file in files] == [(200, 0, 0)] * 2  # row 8 is the highest
