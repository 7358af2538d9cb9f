"""COCO: rows by image id, captions by annotation id, and one line for every table that is broken."""

import json

import numpy as np
import pytest
from data_files import drawing, write_coco

from data import open_pairs
from plumbing.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_coco_sorts_by_image_and_annotation_id_and_says_what_it_leaves_out(coco, capsys):
    pairs = open_pairs("coco", str(coco))
    assert pairs.ids == ["2", "30", "111"]
    assert pairs.images == ["train2017/000000000002.png", *(f"train2017/{i:012d}.png" for i in (30, 111))]
    assert pairs.captions == [["two, first"], ["third"], ["last"]]
    assert open_pairs("coco", str(coco), caption="all").items(0, "text") == ["two, first", "two, later"]
    assert (np.asarray(pairs.image(1)) == np.asarray(drawing(30))).all()
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 of 4 pictures have no caption and are left out" in err


def test_coco_not_found_says_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(
        UserError, match=r"nowhere/annotations/captions_train2017\.json.*train2017\.zip.*--data_root"
    ):
        open_pairs("coco", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([1, 2], [(1, 1, None)], r"annotation 1 of image 1 has the caption None"),
        ([1, 2], [(1, 1, "a"), (8, 2, 7)], r"annotation 8 of image 2 has the caption 7"),
        ([1, "2"], [(1, 1, "a")], r"image ids 1 and '2'; make all of them whole numbers"),
        ([1, 2], [(1, "1", "a")], r"image ids 1 and '1'; make all"),
        ([1.5], [(1, 1.5, "a")], r"image ids 1\.5 and 1\.5; make all"),
        ([None], [(1, {}, "a")], r"image ids None and \{\}; make all"),
    ],
)
def test_coco_texts_and_ids_of_other_kinds_are_named(coco, images, annotations, message):
    write_coco(coco, images, annotations)
    with pytest.raises(UserError, match=message):
        open_pairs("coco", str(coco))


@pytest.mark.parametrize(
    ("ids", "first"), [((5, 5, 5), "a"), ((9, None, 1), "a"), (("9", "8", "7"), "a"), ((9, 8, 7), "c")]
)
def test_ids_of_coco_annotations_order_captions_and_decide_nothing_else(coco, ids, first):
    write_coco(coco, ["2"], [(i, "2", text) for i, text in zip(ids, "abc", strict=True)])
    pairs = open_pairs("coco", str(coco), caption="all", skip_unreadable=True)
    assert (pairs.ids, sorted(pairs.captions[0]), pairs.caption(0)) == (["2"], ["a", "b", "c"], first)


def test_coco_files_that_contradict_themselves_are_named(coco):
    path = coco / "annotations/captions_train2017.json"
    tables = json.loads(path.read_text())
    for change, message in [
        ({"images": tables["images"] + tables["images"][:1]}, "lists image id 30 twice"),
        ({"images": tables["images"][1:]}, "has a caption for image id 30, which it does not list"),
        ({"annotations": [{"id": 1, "image_id": 2}]}, "is not a COCO caption file .*caption"),
    ]:
        path.write_text(json.dumps(tables | change))
        with pytest.raises(UserError, match=message):
            open_pairs("coco", str(coco))
    path.write_text('{"images": [')
    with pytest.raises(UserError, match="is not a COCO caption file"):
        open_pairs("coco", str(coco))
