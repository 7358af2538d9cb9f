"""Pictures of every kind as a person sees them, sounds, and what cannot be decoded."""

import numpy as np
import picture_files
import pytest
from data_files import listed
from PIL import Image

import features
from data import open_pairs
from plumbing.errors import UserError
from sources import media

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", picture_files.READABLE)
def test_an_odd_picture_is_read_as_a_person_sees_it(tmp_path, name):
    file, content, seen = picture_files.READABLE[name]
    picture = open_pairs("folder", str(listed(tmp_path / "odd", {file: content}))).image(0)
    assert picture.mode == "RGB"
    tolerance = 4 if file.endswith(".jpg") and "odd" in file else 0  # JPEG is not exact
    np.testing.assert_allclose(np.asarray(picture).astype(int), seen, atol=tolerance)


@pytest.mark.parametrize("name", picture_files.UNREADABLE)
def test_an_unreadable_picture_stops_the_run_or_is_left_out_and_listed(tmp_path, name):
    file, content, why = picture_files.UNREADABLE[name]
    good = picture_files.READABLE["plain"][1]
    root = str(listed(tmp_path / "odd", {"a.png": good, file: content, "z.png": good}))
    with pytest.raises(
        UserError, match=rf"row 1 \(id '{file}'\): cannot read {file} \(.*({why}).*--skip_unreadable"
    ):
        open_pairs("folder", root).image(1)
    pairs = open_pairs("folder", root, skip_unreadable=True)
    assert (pairs.ids, pairs.captions) == (["a.png", "z.png"], [["a a.png"], ["a z.png"]])
    assert [(item["id"], item["path"]) for item in pairs.unreadable] == [(file, file)]
    assert pairs.fingerprint == features.fingerprint([("a.png", "a a.png"), ("z.png", "a z.png")])
    assert np.array_equal(np.asarray(pairs.image(1)), picture_files.READABLE["plain"][2])


def test_sixteen_bit_grey_rounds_to_the_nearest_of_eight_bits():
    values = np.array([[0, 128, 129, 385, 386, 32767, 65535]], np.uint16)
    picture = media.decode(picture_files.encoded(Image.fromarray(values)))
    assert np.asarray(picture)[0, :, 0].tolist() == [round(int(value) / 65535 * 255) for value in values[0]]


def test_a_huge_picture_is_averaged_down_and_a_bomb_is_refused(tmp_path, monkeypatch):
    """With the lines drawn lower, so that the test stays small; the true sizes are in the slow test."""
    monkeypatch.setattr(media, "REDUCE_PIXELS", 100)
    monkeypatch.setattr(media, "MOST_PIXELS", 1000)
    stripes = np.zeros((20, 40, 3), np.uint8)
    stripes[:, ::3] = 255
    picture = media.decode(Image.fromarray(stripes))
    assert picture.size == (14, 7)  # 800 pixels / 3**2 is below 100, / 2**2 is not
    assert np.asarray(picture)[:6, :13].tolist() == np.full((6, 13, 3), 85).tolist()
    root = str(listed(tmp_path / "bomb", {"a.png": picture_files.encoded(Image.new("L", (50, 21)))}))
    with pytest.raises(UserError, match=r"row 0 .*50 x 21 px is over the limit of 1,000 pixels"):
        open_pairs("folder", root).image(0)


@pytest.mark.slow
def test_twenty_thousand_pixels_square_are_read():
    content = picture_files.encoded(Image.new("1", (20_000, 20_000), 1))
    picture = media.decode(content)
    assert picture.size == (6667, 6667)
    assert picture.getpixel((6000, 6000)) == (255, 255, 255)


@pytest.fixture
def tones(tmp_path):
    """A stereo wav whose channels are 0.5 and -0.25 throughout, a flac, and a wav without its second half."""
    import soundfile

    root = tmp_path / "tones"
    root.mkdir()
    soundfile.write(root / "stereo.wav", np.tile([0.5, -0.25], (800, 1)), 8000)
    soundfile.write(root / "high.flac", np.full(480, 0.5), 48000)
    soundfile.write(root / "cut.wav", np.zeros(4000), 16000)
    (root / "cut.wav").write_bytes((root / "cut.wav").read_bytes()[:4000])
    lines = [f"{name}\ta {name}" for name in ("stereo.wav", "high.flac", "cut.wav")]
    (root / "captions.tsv").write_text("\n".join(lines))
    return root


def test_sounds_are_mono_float32_with_their_own_sampling_rate(tones):
    pairs = open_pairs("folder", str(tones))
    [(frames, rate)] = pairs.items(0, "audio")
    assert (frames.dtype, frames.shape, rate) == (np.float32, (800,), 8000)
    assert np.allclose(frames, 0.125, atol=1e-4)
    [(frames, rate)] = pairs.items(1, "audio")
    assert (frames.shape, rate) == ((480,), 48000)
    assert pairs.items(1, "text") == ["a high.flac"]


def test_a_cut_sound_is_unreadable_and_a_sound_is_no_picture(tones):
    pairs = open_pairs("folder", str(tones))
    with pytest.raises(
        UserError, match=r"row 2 \(id 'cut\.wav'\): cannot read cut\.wav \(the file is cut short"
    ):
        pairs.items(2, "audio")
    with pytest.raises(
        UserError, match=r"row 0 .*stereo\.wav is of the kind audio, and the encoder takes image"
    ):
        pairs.image(0)
    assert open_pairs("folder", str(tones), skip_unreadable=True).ids == ["stereo.wav", "high.flac"]
