"""COCO's objects beside the captions: a row for each of the run's, by image id, kept from one time to the next."""

import json

import numpy as np
import pytest
import scipy.sparse

import data
from plumbing.errors import UserError
from showing import names, objects

MARKED = [
    (30, 18),
    (30, 18),
    (2, 18),
    (2, 44),
    (7, 44),
    (999, 44),
]  # picture 7 has no caption, 999 is of no row


@pytest.fixture
def instances(coco, own_cache):
    """The file of objects, beside the captions of pictures 2, 30 and 111."""
    file = coco / "annotations" / "instances_train2017.json"
    boxes = [
        {
            "id": n,
            "image_id": image,
            "category_id": category,
            "segmentation": [[1.5, 2]],
            "bbox": [0, 0, 1, 1],
        }
        for n, (image, category) in enumerate(MARKED)
    ]
    named = [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}, {"id": 90, "name": "toothbrush"}]
    file.write_text(json.dumps({"images": [{"id": 30}], "annotations": boxes, "categories": named}))
    return file


def test_each_row_has_the_categories_of_its_picture(coco, instances, monkeypatch):
    pairs = data.open_pairs("coco", str(coco))
    found = objects.categories(pairs)
    assert pairs.ids == ["2", "30", "111"]
    assert found.shown == ["dog", "bottle", "toothbrush"]
    assert found.presence.toarray().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    codes = scipy.sparse.csr_array(np.array([[1.0, 1, 0]]).T)
    (told,) = names.described(codes, found)
    assert [(word.word, round(word.r, 6), word.share) for word in told.words] == [
        ("dog", 1.0, pytest.approx(2 / 3)),
        ("bottle", 0.5, pytest.approx(1 / 3)),
    ]
    monkeypatch.setattr(objects.json, "load", None)  # the second time the file is not read
    assert objects.categories(pairs).presence.toarray().tolist() == found.presence.toarray().tolist()
    fewer = objects.categories(data.open_pairs("coco", str(coco), limit=1))
    assert fewer.presence.toarray().tolist() == [[1, 1, 0]]


def test_without_the_file_or_with_other_data_there_are_no_objects(coco, own_cache):
    assert objects.categories(data.open_pairs("coco", str(coco))) is None
    assert objects.categories(data.open_pairs("demo", limit=3)) is None


def test_a_file_that_is_none_of_cocos_is_said_in_one_line(coco, instances):
    instances.write_text('{"images": []}')
    with pytest.raises(UserError, match=r"instances_train2017.json is not a COCO file of objects \(KeyError"):
        objects.categories(data.open_pairs("coco", str(coco)))
