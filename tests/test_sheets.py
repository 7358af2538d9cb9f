"""Feature sheets: what is drawn, and what is held meanwhile."""

import weakref

import numpy as np
import scipy.sparse
from PIL import Image
from runs import make_run

import data
from showing import sheets
from sources.opened import Sample


def test_sheets_hold_small_pictures_and_not_the_photographs(tmp_path, monkeypatch):
    """Each whole picture is gone when the next one is read; read again it is not, where features share samples."""
    monkeypatch.chdir(tmp_path)
    codes = np.tile(np.arange(1.0, 10.0)[:, None], (1, 2))
    run = make_run("clip", {"layer0": codes})
    read, alive = [], []

    class Photographs(data.Pairs):
        def image(self, row):
            assert all(photograph() is None for photograph in alive)
            read.append(row)
            photograph = Image.new("RGB", (2000, 1000), (25 * row, 0, 0))
            alive.append(weakref.ref(photograph))
            return photograph

    pairs = Photographs("photographs", data.open_pairs("demo", limit=9).samples, lambda place: place)
    files = sheets.save_sheets(run, "layer0", scipy.sparse.csr_array(codes), [0, 1], pairs, tmp_path)
    assert sorted(read) == list(range(9))
    x, y = sheets.GAP + sheets.PICTURE // 2, sheets.TITLE + sheets.PICTURE // 2
    assert [Image.open(file).getpixel((x, y)) for file in files] == [(200, 0, 0)] * 2  # row 8 is the highest


def test_a_sound_is_shown_by_its_caption_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = np.arange(1.0, 4.0)[:, None]
    run = make_run("clap", {"layer0": codes})

    samples = [Sample(f"{row}.wav", f"{row}.wav", [f"caption {row}"], None) for row in range(3)]
    pairs = data.Pairs("sounds", samples, lambda place: place)
    (file,) = sheets.save_sheets(run, "layer0", scipy.sparse.csr_array(codes), [0], pairs, tmp_path)
    pixels = np.asarray(Image.open(file))[sheets.TITLE :]
    assert (pixels[: sheets.PICTURE] == 255).all()
    assert (pixels[sheets.PICTURE :][: sheets.TEXT] < 100).any()


def test_a_data_sets_sheet_holds_up_to_thirty_pictures_in_row_order():
    sheet = sheets.contact_sheet(data.open_pairs("demo", limit=61))
    columns = sheets.CONTACT_COLUMNS
    assert sheet.size == (
        sheets.GAP + columns * (sheets.PICTURE + sheets.GAP),
        sheets.TITLE + 4 * (sheets.PICTURE + sheets.TEXT + sheets.GAP),  # 21 pictures: every third of 61 rows
    )
    last = data.open_pairs("demo", limit=61).image(60)
    corner = (
        sheets.GAP + 2 * (sheets.PICTURE + sheets.GAP),
        sheets.TITLE + 3 * (sheets.PICTURE + sheets.TEXT + sheets.GAP),
    )
    box = (*corner, corner[0] + sheets.PICTURE, corner[1] + sheets.PICTURE)
    np.testing.assert_array_equal(
        np.asarray(sheet.crop(box))[1:-1, 1:-1], np.asarray(sheets.fitted(last))[1:-1, 1:-1]
    )
