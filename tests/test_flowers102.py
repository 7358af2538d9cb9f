"""Oxford's flowers: rows by picture, over all classes."""

import pytest
from data_files import drawing

from data import open_pairs
from plumbing.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_flowers102_is_ordered_by_picture_over_all_classes(tmp_path, capsys):
    for number in (3, 1, 2):
        (tmp_path / "jpg").mkdir(exist_ok=True)
        drawing(number).save(tmp_path / "jpg" / f"image_{number:05d}.jpg")
    for kind, number in ((1, 3), (77, 1)):
        (tmp_path / f"text_c10/class_{kind:05d}").mkdir(parents=True)
        path = tmp_path / f"text_c10/class_{kind:05d}/image_{number:05d}.txt"
        path.write_text("".join(f"flower {number}, {line}\n" for line in range(10)))
    pairs = open_pairs("flowers102", str(tmp_path), caption="all")
    assert pairs.ids == ["image_00001", "image_00003"]
    assert [texts[0] for texts in pairs.captions] == ["flower 1, 0", "flower 3, 0"]
    assert [len(texts) for texts in pairs.captions] == [10, 10]
    assert "1 of 3 pictures have no caption and are left out" in capsys.readouterr().err


def test_flowers102_pictures_that_are_missing_are_named(tmp_path):
    (tmp_path / "jpg").mkdir()
    path = tmp_path / "text_c10/class_00001/image_00001.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\ufeffa rose\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"row 0 .*image_00001\.jpg does not exist"):
        open_pairs("flowers102", str(tmp_path))
    drawing(0).save(tmp_path / "jpg/image_00001.jpg")
    assert open_pairs("flowers102", str(tmp_path)).captions == [["a rose"]]


def test_flowers102_not_found_states_the_layout(tmp_path):
    with pytest.raises(
        UserError, match=r"jpg, which does not exist; .*text_c10/class_00077/image_00001\.txt"
    ):
        open_pairs("flowers102", str(tmp_path))
