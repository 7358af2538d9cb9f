"""Data sets: the order and content of their rows, and one clear line for every way they can be broken."""

import hashlib
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from data import UserError, open_pairs


def drawing(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture of random pixels: no two alike, and none the same after a wrong conversion."""
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_folder(root: Path, captions: dict[str, list[str]]) -> Path:
    for seed, file in enumerate(captions):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        drawing(seed).save(root / file)
    lines = [json.dumps({"file": f, "caption": text}) for f, texts in captions.items() for text in texts]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "birds", {"b.png": ["a robin", "a red bird"], "deep/a.png": ["a wren"]})


@pytest.fixture
def coco(tmp_path):
    """Image ids out of order, annotation ids out of order, and image 7 without a caption."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    for image in (30, 7, 2, 111):
        drawing(image).save(root / "train2017" / f"{image:012d}.png")
    annotations = [(9, 30, "third"), (4, 2, "two, later"), (3, 2, "two, first\n"), (5, 111, "last")]
    tables = {
        "images": [{"id": i, "file_name": f"{i:012d}.png"} for i in (30, 7, 2, 111)],
        "annotations": [{"id": a, "image_id": i, "caption": text} for a, i, text in annotations],
    }
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(tables))
    return root


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


def test_folder_keeps_the_order_of_first_appearance(folder):
    pairs = open_pairs("folder", str(folder), caption="all")
    assert (pairs.name, pairs.ids, pairs.images) == (
        "birds",
        ["b.png", "deep/a.png"],
        ["b.png", "deep/a.png"],
    )
    assert pairs.captions == [["a robin", "a red bird"], ["a wren"]]
    assert (np.asarray(pairs.items(1, "image")[0]) == np.asarray(drawing(1))).all()


def test_fingerprint_is_sha256_over_the_ids_one_a_line(folder):
    expected = hashlib.sha256(b"b.png\ndeep/a.png\n").hexdigest()
    assert open_pairs("folder", str(folder)).fingerprint == expected
    assert open_pairs("folder", str(folder), limit=1).fingerprint == hashlib.sha256(b"b.png\n").hexdigest()


@pytest.mark.parametrize("header", ["", "file\tcaption\n", "Caption\tid\tfile_name\n"])
def test_tsv_with_and_without_header(folder, header):
    (folder / "captions.jsonl").unlink()
    rows = {"Caption": "a robin\t1\tb.png\na wren\t2\tdeep/a.png\n"}
    body = rows.get(header.split("\t")[0], "b.png\ta robin\r\n\ndeep/a.png\ta wren\n")
    (folder / "captions.tsv").write_text("\ufeff" + header + body, encoding="utf-8")
    pairs = open_pairs("folder", str(folder))
    assert (pairs.ids, pairs.captions) == (["b.png", "deep/a.png"], [["a robin"], ["a wren"]])


def test_source_reopens_the_same_rows(folder):
    pairs = open_pairs("folder", str(folder), limit=1, caption="all")
    again = open_pairs(**json.loads(json.dumps(pairs.source)))
    assert (again.ids, again.captions, again.source) == (pairs.ids, pairs.captions, pairs.source)


def _first_pixels(pairs):
    return np.asarray(pairs.image(0)).tolist()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_can_read_it(folder, start):
    pairs = pickle.loads(pickle.dumps(open_pairs("folder", str(folder))))
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.apply(_first_pixels, (pairs,)) == np.asarray(drawing(0)).tolist()


def test_importing_data_is_quick():
    code = "import sys, time; s = time.perf_counter(); import data; print(time.perf_counter() - s); \
assert not {'torch', 'datasets', 'pycocotools', 'soundfile', 'tqdm'} & set(sys.modules)"
    root = Path(data.__file__).parent
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code], cwd=root)) for _ in range(3))
    assert seconds < 0.3


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ('{"file": "gone.png", "caption": "x"}', r"row 0 \(id 'gone\.png'\): .*gone\.png does not exist"),
        ('{"file": "b.png"}', r"captions\.jsonl:1: needs"),
        ('{"file": "b.png", "caption": 3}', r"captions\.jsonl:1: needs"),
        ("nonsense", r"captions\.jsonl:1: not a JSON object"),
        ('{"file": "/b.png", "caption": "x"}', r"captions\.jsonl:1: '/b\.png' is not relative"),
        ("", "holds no pairs of a readable file and a caption"),
        ("\n\n", "holds no pairs of a readable file and a caption"),
    ],
)
def test_a_broken_listing_is_named(folder, listing, message):
    (folder / "captions.jsonl").write_text(listing)
    with pytest.raises(UserError, match=message):
        open_pairs("folder", str(folder))


def test_a_tsv_line_without_a_tab_is_named(folder):
    (folder / "captions.jsonl").unlink()
    (folder / "captions.tsv").write_text("b.png\ta robin\nb.png a wren\n")
    with pytest.raises(UserError, match=r"captions\.tsv:2: needs a file, a tab and a caption"):
        open_pairs("folder", str(folder))


def test_mistakes_in_the_arguments_name_the_valid_ones(folder):
    with pytest.raises(UserError, match="'imagenet' is unknown; the data sets are: demo, coco, folder"):
        open_pairs("imagenet")
    with pytest.raises(UserError, match="--limit 0 leaves no rows"):
        open_pairs("folder", str(folder), limit=0)
    with pytest.raises(UserError, match="--caption 'best' is unknown; type first or all"):
        open_pairs("folder", str(folder), caption="best")
    with pytest.raises(UserError, match="needs --data_root DIR"):
        open_pairs("folder")
    with pytest.raises(
        UserError, match="--split means nothing to data set 'folder', which takes no such option"
    ):
        open_pairs("folder", str(folder), split="train")
    (folder / "captions.jsonl").unlink()
    with pytest.raises(UserError, match=r"has neither captions\.jsonl nor captions\.tsv"):
        open_pairs("folder", str(folder))


def test_an_unreadable_picture_stops_the_run_with_its_row(folder):
    (folder / "deep/a.png").write_bytes(b"")
    pairs = open_pairs("folder", str(folder))
    with pytest.raises(
        UserError, match=r"row 1 \(id 'deep/a\.png'\): cannot read deep/a\.png .*--skip_unreadable"
    ):
        pairs.image(1)
