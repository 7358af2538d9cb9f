"""Folders with a listing: captions.jsonl and captions.tsv as people and csv writers write them."""

import csv
import io

import numpy as np
import pytest
from data_files import drawing

from data import open_pairs
from plumbing.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_folder_keeps_the_order_of_first_appearance(folder):
    pairs = open_pairs("folder", str(folder), caption="all")
    assert (pairs.name, pairs.ids, pairs.images) == (
        "birds",
        ["b.png", "deep/a.png"],
        ["b.png", "deep/a.png"],
    )
    assert pairs.captions == [["a robin", "a red bird"], ["a wren"]]
    assert (np.asarray(pairs.items(1, "image")[0]) == np.asarray(drawing(1))).all()


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ('{"file": "gone.png", "caption": "x"}', r"row 0 \(id 'gone\.png'\): .*gone\.png does not exist"),
        ('{"file": "b.png"}', r"captions\.jsonl:1: needs"),
        ('{"file": "b.png", "caption": 3}', r"captions\.jsonl:1: needs"),
        ("nonsense", r"captions\.jsonl:1: not a JSON object"),
        ('{"file": "a\\u0000b", "caption": "x"}', r"row 0 .* does not exist"),
        ('{"file": "\\ud83d.png", "caption": "x"}', r"row 0 .* does not exist"),
        ('{"file": "/b.png", "caption": "x"}', r"captions\.jsonl:1: '/b\.png' is not relative"),
        ("", "holds no readable file with a caption"),
        ("\n\n", "holds no readable file with a caption"),
    ],
)
def test_a_broken_listing_is_named(folder, listing, message):
    (folder / "captions.jsonl").write_text(listing)
    with pytest.raises(UserError, match=message):
        open_pairs("folder", str(folder))
    with pytest.raises(UserError):
        open_pairs("folder", str(folder), skip_unreadable=True)


def test_files_without_captions_are_left_out_and_counted(folder, capsys):
    listing = '{"file": "b.png", "captions": []}\n{"file": "deep/a.png", "caption": "a wren"}\n'
    (folder / "captions.jsonl").write_text(listing)
    assert open_pairs("folder", str(folder)).ids == ["deep/a.png"]
    assert "1 of 2 files have no caption and are left out" in capsys.readouterr().err


def test_captions_in_another_encoding_are_refused(folder):
    (folder / "captions.jsonl").write_bytes('{"file": "b.png", "caption": "café"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"captions\.jsonl is not UTF-8 text"):
        open_pairs("folder", str(folder))


@pytest.mark.parametrize("header", ["", "file\tcaption\n", "Caption\tid\tfile_name\n"])
def test_tsv_with_and_without_header(folder, header):
    (folder / "captions.jsonl").unlink()
    rows = {"Caption": "a robin\t1\tb.png\na wren\t2\tdeep/a.png\n"}
    body = rows.get(header.split("\t")[0], "b.png\ta robin\r\n\ndeep/a.png\ta wren\n")
    (folder / "captions.tsv").write_text("\ufeff" + header + body, encoding="utf-8")
    pairs = open_pairs("folder", str(folder))
    assert (pairs.ids, pairs.captions) == (["b.png", "deep/a.png"], [["a robin"], ["a wren"]])


def as_tsv(folder, content):
    (folder / "captions.jsonl").unlink()
    (folder / "captions.tsv").write_bytes(content.encode())
    return open_pairs("folder", str(folder), caption="all")


@pytest.mark.parametrize("header", ["", "file\tcaption\n", "\ufefffile\tcaption\n"])
def test_a_tsv_of_a_csv_writer_is_read_as_it_was_written(folder, header):
    texts = ['a dog, "happy" and red', "a cat\tand a hat", "two\nlines", 'a "b"', "plain"]
    lines = io.StringIO()
    csv.writer(lines, delimiter="\t").writerows([["b.png", text] for text in texts])
    assert as_tsv(folder, header + lines.getvalue()).captions == [texts]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("b.png\ta robin\nb.png a wren\n", r"captions\.tsv:2: needs a file, a tab and a caption, and has 1"),
        ("file\tcaption\n\nb.png\ta\tb\n", r"captions\.tsv:3: needs 2 fields, and has 3: 'b\.png | a | b'"),
        ("file\tid\tcaption\nb.png\t7\n", r"captions\.tsv:2: needs 3 fields, and has 2"),
        ('b.png\tx\nb.png\t"a" b\n', r"captions\.tsv:2: not a tab-separated line .*doubled"),
        ('b.png\t"a robin\ndeep/a.png\ta wren\n', r"captions\.tsv:1: not a tab-separated line .*doubled"),
        ('b.png\t"a robin\ndeep/a.png\ta "wren"\n', r"captions\.tsv:1: not a tab-separated line"),
        ('b.png\t"a\ndeep/a.png\ta wren"\n', r"captions\.tsv:1: .*a field holds whole lines"),
    ],
)
def test_a_tsv_line_that_is_none_is_named(folder, content, message):
    with pytest.raises(UserError, match=message):
        as_tsv(folder, content)
