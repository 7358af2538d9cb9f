"""Thumbnails: what they show, what is decoded again, and what is said where pictures or the disk fail."""

import os
from collections import namedtuple

import numpy as np
import picture_files
import pytest
from data_files import listed
from PIL import Image

import data
from plumbing.errors import UserError
from showing import thumbnails as module
from showing.thumbnails import SIDE, Thumbnails, fitted, thumbnails
from sources import media
from sources.opened import Sample


def photograph(orientation=None):
    """A JPEG of 640 x 480 px, its four quarters red, green, blue and white."""
    quarters = np.zeros((480, 640, 3), np.uint8)
    quarters[:240, :320, 0] = quarters[:240, 320:, 1] = quarters[240:, :320, 2] = quarters[240:, 320:] = 255
    exif = Image.Exif()
    if orientation:
        exif[picture_files.ORIENTATION] = orientation
    return picture_files.encoded(Image.fromarray(quarters), "JPEG", quality=95, exif=exif)


def odd_pairs(tmp_path, files):
    return data.open_pairs("folder", str(listed(tmp_path / "odd", files)), unreadable=[])


def test_odd_pictures_become_thumbnails_as_a_person_sees_them(tmp_path):
    """A mean of colours survives both scaling and JPEG."""
    named = {file: (content, seen) for file, content, seen in picture_files.READABLE.values()}
    pairs = odd_pairs(tmp_path, {file: content for file, (content, _) in named.items()})
    made = thumbnails(pairs, tmp_path / "kept")
    assert made.missing == {}
    for row, (file, (_, seen)) in enumerate(named.items()):
        picture = made.picture(row)
        height, width = seen.shape[:2]
        assert picture.size == tuple(
            max(1, round(side * SIDE / max(width, height))) for side in (width, height)
        )
        shown = np.asarray(fitted(Image.fromarray(seen.astype(np.uint8)), SIDE)).mean((0, 1))
        np.testing.assert_allclose(np.asarray(picture).mean((0, 1)), shown, atol=6, err_msg=file)


def test_a_jpeg_is_decoded_small_and_then_turned(tmp_path):
    """EXIF 6: the camera was held so that the stored left side is the top. Corners by hand."""
    assert media.decode(photograph(6), least=SIDE).size == (120, 160)
    pairs = odd_pairs(tmp_path, {"plain.jpg": photograph(), "turned.jpg": photograph(6)})
    made = thumbnails(pairs, tmp_path / "kept")
    plain, turned = made.picture(0), made.picture(1)
    assert (plain.size, turned.size) == ((160, 120), (120, 160))
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    for picture, corners in ((plain, (red, green, blue, white)), (turned, (blue, red, white, green))):
        x, y = picture.width // 4, picture.height // 4
        for (i, j), colour in zip(((1, 1), (3, 1), (1, 3), (3, 3)), corners, strict=True):
            np.testing.assert_allclose(picture.getpixel((i * x, j * y)), colour, atol=12)


def test_only_what_is_not_there_or_has_changed_is_decoded(tmp_path, monkeypatch):
    pairs = odd_pairs(tmp_path, {f"{row}.jpg": photograph() for row in range(4)})
    decoded = []

    def decode(content, least):
        decoded.append(content)
        return media.decode(content, least)

    monkeypatch.setattr(module, "decode", decode)
    thumbnails(pairs, tmp_path, [2, 0, 2])
    assert len(decoded) == 2
    made = thumbnails(pairs, tmp_path)
    assert len(decoded) == 4
    assert thumbnails(pairs, tmp_path) == made
    assert len(decoded) == 4
    made.path(1).write_bytes(b"")  # as a power cut may leave it
    later = made.path(2).stat().st_mtime_ns + 10**9
    (tmp_path / "odd/2.jpg").write_bytes(photograph(6))
    os.utime(tmp_path / "odd/2.jpg", ns=(later, later))
    assert thumbnails(pairs, tmp_path).picture(2).size == (120, 160)
    assert len(decoded) == 6
    assert {file.name for file in made.folder.rglob("*") if file.is_file()} == {
        f"{row:06}.jpg" for row in range(4)
    }


def test_pictures_that_are_gone_or_broken_are_counted_in_one_line(tmp_path, capsys):
    pairs = odd_pairs(tmp_path, {"a.jpg": photograph(), "b.jpg": b"<html>", "c.jpg": photograph()})
    (tmp_path / "odd/c.jpg").unlink()
    made = thumbnails(pairs, tmp_path / "kept")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("2 of 3 pictures have no thumbnail; the first is row 1 (b.jpg): not a picture")
    assert "--data_root" in line
    assert list(made.missing) == [1, 2]
    assert [made.picture(row) is None for row in range(3)] == [False, True, True]
    assert made.copy_to(tmp_path / "out", range(3)) == [1, 2]
    assert made.copy_to(tmp_path / "out", range(3)) == [1, 2]  # again, over what is there
    assert [str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*")] == [
        "000/000000.jpg"
    ]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(5000))
    pairs = odd_pairs(tmp_path, {f"{row}.jpg": photograph() for row in range(2)})
    with pytest.raises(
        UserError, match=r"of 2 pictures take about .* and .*kept.* has 0.0 MB: free some, .*--thumb"
    ):
        thumbnails(pairs, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_sounds_have_no_thumbnails_and_are_not_missing(tmp_path, capsys):
    samples = [Sample(f"{row}.wav", f"{row}.wav", [f"caption {row}"], None) for row in range(3)]
    pairs = data.Pairs("sounds", samples, lambda place: place)
    assert thumbnails(pairs, tmp_path) == Thumbnails(tmp_path / f"{pairs.fingerprint[:16]}-{SIDE}", SIDE, {})
    assert capsys.readouterr().err == ""
