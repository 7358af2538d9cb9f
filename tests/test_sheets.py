"""Sheets and figures of features: which features, which samples, and what stands where a picture is missing."""

import numpy as np
import pytest
import scipy.sparse
from PIL import Image
from runs import make_run

import data
import show
from plumbing.errors import UserError
from showing import grids, lettering, sheets
from showing.thumbnails import SIDE, fitted
from sources.opened import Sample

CORNER = sheets.GAP + SIDE // 2, sheets.TITLE + SIDE // 2  # the middle of a sheet's first picture


def pictured(colours, captions=None):
    """A data set of plain pictures, one a colour; a row of None cannot be read."""

    def read(row):
        if colours[row] is None:
            raise FileNotFoundError("gone")
        return Image.new("RGB", (200, 100), colours[row])

    captions = captions or [f"caption {row}" for row in range(len(colours))]
    samples = [Sample(f"sample{row}", f"{row}.png", [text], row) for row, text in enumerate(captions)]
    return data.Pairs("colours", samples, read)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def middle(file):
    return np.asarray(Image.open(file))[CORNER[1], CORNER[0]].astype(int)


def test_a_sheet_shows_the_highest_samples_first(here):
    """Row 8 is the highest of feature 0, and row 0 of feature 1; equal activations go by row."""
    codes = np.column_stack([np.arange(1.0, 10.0), np.ones(9)])
    run = make_run("clip", {"layer0": codes})
    pairs = pictured([(25 * row, 0, 0) for row in range(9)])
    files = sheets.save_sheets(
        run, "layer0", scipy.sparse.csr_array(codes), [0, 1], pairs, here / "imgs/clip"
    )
    assert [file.name for file in files] == ["layer0-feature00000.jpg", "layer0-feature00001.jpg"]
    np.testing.assert_allclose([middle(file) for file in files], [(200, 0, 0), (0, 0, 0)], atol=4)


def test_a_missing_picture_is_a_grey_tile_and_counted(here, capsys):
    codes = scipy.sparse.csr_array(np.array([[2.0], [1.0]]))
    run = make_run("clip", {"layer0": codes.toarray()})
    pairs = pictured([None, (255, 0, 0)])
    (file,) = sheets.save_sheets(run, "layer0", codes, [0], pairs, here / "clip", suffix="png")
    pixels = np.asarray(Image.open(file))[sheets.TITLE :, sheets.GAP :]
    assert tuple(pixels[10, 10]) == sheets.TILE
    assert (pixels[SIDE // 2, :SIDE] < 150).any()  # its label
    np.testing.assert_allclose(
        pixels[SIDE // 2, SIDE + sheets.GAP + SIDE // 2].astype(int), (255, 0, 0), atol=4
    )
    assert "1 of 2 pictures have no thumbnail" in capsys.readouterr().err


def test_a_sound_is_shown_by_its_caption_alone(here):
    codes = np.arange(1.0, 4.0)[:, None]
    run = make_run("clap", {"layer0": codes})
    samples = [Sample(f"{row}.wav", f"{row}.wav", [f"caption {row}"], None) for row in range(3)]
    pairs = data.Pairs("sounds", samples, lambda place: place)
    found = scipy.sparse.csr_array(codes)
    (file,) = sheets.save_sheets(run, "layer0", found, [0], pairs, here / "clap", suffix="png")
    pixels = np.asarray(Image.open(file))[sheets.TITLE :]
    assert len(pixels) == sheets.TEXT + sheets.GAP
    assert (pixels[: sheets.TEXT] < 100).any()
    with pytest.raises(UserError, match="of sounds"):
        grids.save_grid(here / "a.png", run, "layer0", found, [0], (2, 2), pairs, here, {}, SIDE)


def test_any_caption_stays_within_its_cell():
    """Long ones, one long word, right to left, markup, nothing: four lines, none wider than the cell."""
    captions = ["A MAN ON A WHITE HORSE " * 500, "x" * 10_000, "כלב שחור רץ על הדשא " * 9, "</script><b>", ""]
    for caption in captions:
        lines = lettering.wrapped(caption, SIDE, 4)
        assert len(lines) <= 4
        wide = [lettering.PLAIN.font.getlength(line.removesuffix(" …")) for line in lines]
        assert max(wide) <= SIDE
        assert lines[-1].endswith("…") == (len(caption) > 20)
    assert lettering.wrapped("a red ball", SIDE, 4) == ["a red ball"]
    assert lettering.cut("feature 12: " + "x" * 1000, lettering.BIG, 300).startswith("feature 12: xx")
    assert lettering.BIG.font.getlength(lettering.cut("x" * 1000, lettering.BIG, 300)) <= 300


def test_words_put_together_are_what_the_line_would_be():
    """Within a pixel's shade: letters at the ends of words keep their places."""
    text, style = "a red ball, 3 of 10", lettering.PLAIN
    whole, joined = (Image.new("L", (200, 30)) for _ in range(2))
    pens = [sheets.ImageDraw.Draw(picture) for picture in (whole, joined)]
    pens[0].text((5, 5), text, 255, font=style.font)
    lettering.write(pens[1], 5, 5, text, style._replace(ink=255))
    blurred = [np.asarray(picture.reduce(5)).astype(int) for picture in (whole, joined)]
    assert np.abs(blurred[0] - blurred[1]).max() < 40 < blurred[0].max()


def test_features_are_chosen_by_what_tells():
    """Feature 0 is active on all rows and has the highest sum; 3 on none. By score, 2 is first."""
    codes = np.zeros((40, 4))
    codes[:, 0], codes[:2, 1], codes[:4, 2] = 9, 2, 3
    found = scipy.sparse.csr_array(codes)
    assert sheets.chosen_features(found, None, 9, 2) == [2, 1, 0]
    assert sheets.chosen_features(found, None, None, 3) == [0, 2]
    assert sheets.chosen_features(found, None, 2, 2, np.array([0.5, 0.1, 0.7, 0.9])) == [2, 0]
    with pytest.raises(UserError, match="feature 4: the layer has features 0 to 3"):
        sheets.chosen_features(found, [1, 4], None, 2)


def demo_run(name, codes, modality="image"):
    pairs = data.open_pairs("demo", limit=len(codes))
    captions = [pairs.caption(row) for row in range(len(pairs))]
    return make_run(name, {"layer0": codes}, pairs.ids, modality, pairs.source, captions=captions)


def test_top_goes_by_the_held_out_correlation_with_the_compared_run(here, capsys):
    """B has feature 2 as it is and feature 0 with noise, but nothing of 1 and 3, whose sums are higher."""
    dice = np.random.default_rng(0)
    codes = dice.random((80, 4)) * (dice.random((80, 4)) < 0.5) * [1, 5, 1, 9]
    demo_run("A", codes)
    demo_run("B", np.column_stack([codes[:, 0] + 0.4 * dice.random(80), dice.random((80, 2)), codes[:, 2]]))
    files = show.main(["--run", "A", "--compare", "B", "--top", "2"])
    assert [file.name for file in files] == ["layer0-feature00002.jpg", "layer0-feature00000.jpg"]
    assert "layer0-feature00002.jpg  held out in B: 1.000" in capsys.readouterr().out


def test_a_layer_of_8192_features_of_which_6_live(here, capsys):
    codes = np.zeros((30, 8192), np.float32)
    codes[:20, 1000:1006] = 1
    demo_run("thin", codes, "text")  # a text run alone: its pictures are the data set's
    assert len(show.main(["--run", "thin", "--png"])) == 6
    assert show.main(["--run", "thin", "--features", "7"]) == []
    demo_run("dead", 0 * codes)
    for words in ([], ["--sheet", "7"]):
        with pytest.raises(SystemExit):
            show.main(["--run", "dead", *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-2:] == [
        "error: no feature of layer0 is active on 16 samples: name some with --features",
        "error: feature 7 of layer0 is active on no sample: leave it out of --sheet",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--run A --grid 2x2", "--grid means nothing without --sheet"),
        ("--run A --sheet 1 --png", "--png means nothing to --sheet"),
        ("--report A B --top 3", "--top means nothing to --report"),
        ("--report A B --layer 0", "--layer means nothing to --report"),
        ("--run A --sheet 1 --grid 0x3", "'0x3' is no grid"),
        ("--run A --thumb 4", "'4' is no size"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        show.main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_figure_is_a_grid_of_squares_in_order(here):
    """2 x 2 of the four highest rows, the fourth of which is missing; the squares are the pictures' middles."""
    codes = scipy.sparse.csr_array(np.array([[1.0], [4.0], [3.0], [2.0]]))
    pairs = pictured([None, (255, 0, 0), (0, 255, 0), (0, 0, 255)])
    found = next(sheets.highest(codes, [0], 4))
    small = grids.thumbnails(pairs, here, [0, 1, 2, 3], 50)
    pixels = grids.mosaic(found, (2, 3), small)
    assert pixels.shape == (50 + 4 + 50, 3 * 50 + 2 * 4, 3)
    centres = [pixels[y, x].astype(int) for y, x in ((25, 25), (25, 79), (25, 133), (60, 5), (79, 79))]
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), sheets.TILE, (255, 255, 255)]
    np.testing.assert_allclose(centres, expected, atol=4)
    assert grids.arrangement(6, (3, 3)) == (2, 3)
    assert grids.arrangement(5, (1, 10)) == (5, 1)


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_figure_of_some_features_is_written(here, suffix):
    demo_run("A", np.eye(20))
    (file,) = show.main(["--run", "A", "--sheet", "3", "4", "3", "--grid", "1x2", "--out", f"a.{suffix}"])
    content = file.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix])
    if suffix == "pdf":
        assert content.count(b"/Subtype /Image") == 2
        assert b"/Type3" not in content


def test_a_data_sets_sheet_holds_up_to_thirty_pictures_in_row_order():
    sheet = sheets.contact_sheet(data.open_pairs("demo", limit=61))
    columns, side = sheets.CONTACT_COLUMNS, sheets.CONTACT_SIDE
    assert sheet.size == (
        sheets.GAP + columns * (side + sheets.GAP),
        sheets.TITLE + 4 * (side + sheets.TEXT + sheets.GAP),  # 21 pictures: every third of 61 rows
    )
    last = data.open_pairs("demo", limit=61).image(60)
    corner = (sheets.GAP + 2 * (side + sheets.GAP), sheets.TITLE + 3 * (side + sheets.TEXT + sheets.GAP))
    box = (*corner, corner[0] + side, corner[1] + side)
    np.testing.assert_array_equal(
        np.asarray(sheet.crop(box))[1:-1, 1:-1], np.asarray(fitted(last, side))[1:-1, 1:-1]
    )
