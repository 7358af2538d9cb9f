"""Data sets: the order and content of their rows, and one clear line for every way they can be broken."""

import csv
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import picture_files
import pytest
from PIL import Image

import check
import data
import features
from data import open_pairs
from plumbing import commandline
from plumbing.errors import UserError
from showing import sheets
from sources import huggingface, media, unreadable, webdataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Scans are remembered in the user's cache folder; each test has its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drawing(seed: int) -> Image.Image:
    return Image.fromarray(picture_files.pixels(seed))


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


def write_coco(root, images, annotations):
    """The tables, behind a byte order mark; every image is the file of the image 2."""
    tables = {
        "images": [{"id": i, "file_name": f"{2:012d}.png"} for i in images],
        "annotations": [{"id": a, "image_id": i, "caption": text} for a, i, text in annotations],
    }
    path = root / "annotations/captions_train2017.json"
    path.write_text(json.dumps(tables), encoding="utf-8-sig")


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


def test_folder_keeps_the_order_of_first_appearance(folder):
    pairs = open_pairs("folder", str(folder), caption="all")
    assert (pairs.name, pairs.ids, pairs.images) == (
        "birds",
        ["b.png", "deep/a.png"],
        ["b.png", "deep/a.png"],
    )
    assert pairs.captions == [["a robin", "a red bird"], ["a wren"]]
    assert (np.asarray(pairs.items(1, "image")[0]) == np.asarray(drawing(1))).all()


def test_the_fingerprint_is_of_ids_and_first_captions(folder):
    expected = features.fingerprint([("b.png", "a robin"), ("deep/a.png", "a wren")])
    assert open_pairs("folder", str(folder)).fingerprint == expected
    assert open_pairs("folder", str(folder), caption="all").fingerprint == expected
    first = features.fingerprint([("b.png", "a robin")])
    assert open_pairs("folder", str(folder), limit=1).fingerprint == first


def test_the_same_file_names_in_unrelated_folders_have_two_fingerprints(tmp_path):
    cats, cars = (
        open_pairs("folder", str(write_folder(tmp_path / name, {"0.png": [f"a {name}"]})))
        for name in ("cats", "cars")
    )
    assert cats.ids == cars.ids
    assert cats.fingerprint != cars.fingerprint


@pytest.mark.parametrize("kind", ["hf without ids", "webdataset"])
def test_numbered_rows_of_unrelated_data_have_two_fingerprints(tmp_path, hub_cache, kind):
    found = []
    for word in ("cat", "car"):
        if kind == "webdataset":
            shard = write_shard(tmp_path / f"{word}.tar", members("00000", 0, f"a {word}"))
            found.append(open_pairs("webdataset", str(shard)))
        else:
            hf_table(hub_cache, 1, caption=[f"a {word}"]).to_parquet(tmp_path / f"{word}.parquet")
            found.append(open_pairs(f"hf:{tmp_path}/{word}.parquet"))
    assert found[0].ids == found[1].ids
    assert found[0].fingerprint != found[1].fingerprint


def test_a_file_stamp_follows_every_file_that_holds_the_rows_and_the_data_when_they_move(folder):
    stamps = {open_pairs("folder", str(folder)).file_stamp() for _ in range(2)}
    for number, file in enumerate(("b.png", "deep/a.png", "captions.jsonl")):
        os.utime(folder / file, ns=(1, 10**9 + number))
        stamps.add(open_pairs("folder", str(folder)).file_stamp())
    assert len(stamps) == 4
    moved = folder.rename(folder.with_name("moved"))
    assert open_pairs("folder", str(moved)).file_stamp() in stamps
    (moved / "unlisted.png").touch()
    assert open_pairs("folder", str(moved)).file_stamp() in stamps


@pytest.mark.parametrize("form", ["coco", "webdataset", "parquet", "saved", "imagefolder"])
def test_file_stamps_of_other_kinds_of_data_set(tmp_path, coco, shards, hub_cache, form):
    hf_table(hub_cache).to_parquet(tmp_path / "birds.parquet")
    hf_table(hub_cache).save_to_disk(tmp_path / "saved")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    drawing(0).save(pictures / "0.png")
    (pictures / "metadata.csv").write_text("file_name,caption\n0.png,a robin\n")
    opened = {
        "coco": (("coco", str(coco)), coco / "annotations/captions_train2017.json"),
        "webdataset": (("webdataset", str(shards)), shards / "00010.tar"),
        "parquet": ((f"hf:{tmp_path}/birds.parquet",), tmp_path / "birds.parquet"),
        "saved": ((f"hf:{tmp_path}/saved",), next(tmp_path.glob("saved/*.arrow"))),
        "imagefolder": ((f"hf:{pictures}",), pictures / "0.png"),
    }
    arguments, file = opened[form]
    first = open_pairs(*arguments).file_stamp()
    assert open_pairs(*arguments).file_stamp() == first
    os.utime(file, ns=(1, 10**9))
    assert open_pairs(*arguments).file_stamp() != first


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


def test_importing_data_imports_nothing_heavy():
    code = "import sys, data; print(*sys.modules)"
    root = Path(data.__file__).parent
    modules = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).split()
    assert not {"torch", "numpy", "datasets", "pycocotools", "soundfile", "tqdm"} & set(modules)


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


def test_files_without_captions_are_left_out_and_counted(folder, capsys):
    listing = '{"file": "b.png", "captions": []}\n{"file": "deep/a.png", "caption": "a wren"}\n'
    (folder / "captions.jsonl").write_text(listing)
    assert open_pairs("folder", str(folder)).ids == ["deep/a.png"]
    assert "1 of 2 files have no caption and are left out" in capsys.readouterr().err


def test_mistakes_in_the_arguments_name_the_valid_ones(folder):
    with pytest.raises(UserError, match="'imagenet' is unknown; the data sets are: demo, coco, folder"):
        open_pairs("imagenet")
    with pytest.raises(UserError, match="--limit 0 leaves no rows"):
        open_pairs("folder", str(folder), limit=0)
    with pytest.raises(UserError, match="--caption 'best' is unknown; type first or all"):
        open_pairs("folder", str(folder), caption="best")
    with pytest.raises(UserError, match="--data_root 'here' means nothing to data set 'demo'; leave it out"):
        open_pairs("demo", "here")
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


# ------------------------------------------------------------------------------------- pictures of every kind


def listed(root: Path, files: dict[str, bytes]) -> Path:
    """A folder data set of files with given bytes; each caption is the file's name."""
    root.mkdir(parents=True)
    for file, content in files.items():
        (root / file).write_bytes(content)
    lines = [json.dumps({"file": file, "caption": f"a {file}"}) for file in files]
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root


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


# ------------------------------------------------------------------------------------------- unreadable items


@pytest.fixture
def damaged(folder):
    (folder / "b.png").write_bytes(b"")
    return folder


def test_a_scan_is_done_once_and_again_when_a_file_changes(damaged, monkeypatch):
    first = open_pairs("folder", str(damaged), skip_unreadable=True)
    assert first.unreadable == [{"id": "b.png", "path": "b.png", "why": "the file is empty"}]
    with monkeypatch.context() as patch:
        patch.setattr(unreadable, "scan", None)  # a second scan would call it
        assert open_pairs("folder", str(damaged), skip_unreadable=True).unreadable == first.unreadable
    drawing(0).save(damaged / "b.png")
    assert open_pairs("folder", str(damaged), skip_unreadable=True).ids == ["b.png", "deep/a.png"]


def test_reopening_from_source_leaves_out_the_same_without_looking(damaged, monkeypatch):
    pairs = open_pairs("folder", str(damaged), skip_unreadable=True)
    monkeypatch.setattr(unreadable, "scan", None)
    again = open_pairs(**json.loads(json.dumps(pairs.source)))
    assert (again.ids, again.fingerprint, again.unreadable) == (
        pairs.ids,
        pairs.fingerprint,
        pairs.unreadable,
    )


def test_a_missing_file_is_left_out_too_and_nothing_left_is_an_error(folder, capsys):
    (folder / "b.png").unlink()
    pairs = open_pairs("folder", str(folder), skip_unreadable=True)
    assert "birds: 1 unreadable items are left out, all listed in run.json; the first is b.png" in (
        capsys.readouterr().err
    )
    assert pairs.ids == ["deep/a.png"]
    assert "No such file" in pairs.unreadable[0]["why"]
    with pytest.raises(UserError, match="holds no readable file with a caption"):
        open_pairs("folder", str(folder), limit=1, skip_unreadable=True)


# --------------------------------------------------------------------------------------------------- captions


def test_odd_captions_are_kept_as_they_are(tmp_path):
    texts = [
        "",
        "word " * 1999 + "words",
        "一只猫在桌子上",
        "قطة على الطاولة",
        "naïve \u2028 café 🐈",
        "  trimmed \n",
    ]
    root = tmp_path / "odd"
    root.mkdir()
    for row in range(len(texts)):
        drawing(row).save(root / f"{row}.png")
    lines = [json.dumps({"file": f"{n}.png", "caption": t}, ensure_ascii=False) for n, t in enumerate(texts)]
    (root / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairs = open_pairs("folder", str(root))
    assert pairs.captions == [[text.strip()] for text in texts]
    assert len(pairs.caption(1)) == 10_000


def test_every_text_can_be_written_and_bears_no_mark(tmp_path, capsys):
    """Names of a tar that are no UTF-8, half an emoji, and marks within the texts."""
    shard = tmp_path / "0.tar"
    picture = picture_files.encoded(drawing(0))
    with tarfile.open(shard, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for name, content in [
            ("caf\xe9.png", picture),
            ("caf\xe9.txt", "\ufeffa caf\xe9".encode()),
            ("caf\xe8.png", picture),
            ("caf\xe8.json", b'{"caption": ["\\ufeff half \\ud83d"]}'),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    pairs = open_pairs("webdataset", str(shard), skip_unreadable=True)
    assert pairs.ids == [r"caf\udce9", r"caf\udce8"]
    assert pairs.captions == [["a caf\xe9"], ["half \ufffd"]]
    assert "captions of 1 rows hold halves of characters" in capsys.readouterr().err
    assert pairs.image(1).size == (24, 16)
    assert len({pairs.fingerprint, pairs.file_stamp()}) == 2
    for text in (*pairs.ids, *pairs.images, json.dumps(pairs.source)):
        assert text.encode().decode() == text


def test_captions_in_another_encoding_are_refused(folder):
    (folder / "captions.jsonl").write_bytes('{"file": "b.png", "caption": "café"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"captions\.jsonl is not UTF-8 text"):
        open_pairs("folder", str(folder))


# ------------------------------------------------------------------------------------------------- flowers102


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


# ------------------------------------------------------------------------------------------------- webdataset


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members(key: str, seed: int, caption: str) -> list[tuple[str, bytes]]:
    record = json.dumps({"caption": caption, "key": key, "status": "success"}).encode()
    picture = picture_files.encoded(drawing(seed))
    return [(f"{key}.png", picture), (f"{key}.txt", caption.encode()), (f"{key}.json", record)]


@pytest.fixture
def shards(tmp_path):
    """Two shards of two keys; within a shard the keys are not in alphabetical order."""
    root = tmp_path / "laion"
    write_shard(root / "00009.tar", members("000090001", 0, "zero") + members("000090000", 1, "one"))
    write_shard(root / "00010.tar", members("000100000", 2, "two") + members("000100001", 3, "three"))
    return root


@pytest.mark.parametrize(
    "pattern", ["{00009..00010}.tar", "{00009,00010}.tar", "000{09..10}.tar", "*.tar", ""]
)
def test_webdataset_keeps_shards_in_pattern_order_and_members_in_tar_order(shards, pattern):
    pairs = open_pairs("webdataset", str(shards / pattern))
    assert pairs.name == "laion"
    assert pairs.ids == ["000090001", "000090000", "000100000", "000100001"]
    assert pairs.images[0] == "00009.tar/000090001.png"
    assert pairs.captions == [["zero"], ["one"], ["two"], ["three"]]
    for row in (3, 0, 2, 1):
        assert np.array_equal(np.asarray(pairs.image(row)), picture_files.pixels(row))


@pytest.mark.parametrize("name", ["a[1]", "b{2}", "c{x,y}", "d e", "e*"])
def test_webdataset_folders_mean_themselves_whatever_their_names_hold(shards, name):
    root = shards.rename(shards.with_name(name))
    (root / "00009.tar").rename(root / "f{1,2}[3].tar")
    whole = ["000100000", "000100001", "000090001", "000090000"]
    for pattern in ("", "*.tar", "{00010,f*}.tar"):
        assert open_pairs("webdataset", str(root / pattern)).ids == whole
    assert open_pairs("webdataset", str(root / "f{1,2}[3].tar")).ids == whole[2:]


def test_braces_of_shards_are_the_shells():
    for pattern in ("{8..11}", "{08..11}", "{11..9}", "a{b,c}{1..2}", "{}", "{a}", "{a}{1,2}"):
        shell = subprocess.check_output(["bash", "-c", f"echo {pattern}"], text=True).split()
        assert webdataset.expanded(pattern) == shell


def test_webdataset_pattern_order_is_the_users(shards):
    assert open_pairs("webdataset", str(shards / "{00010,00009}.tar")).ids[0] == "000100000"


def test_keys_that_shards_repeat_are_told_apart_by_shard(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", members("7", number, f"text {number}"))
    assert open_pairs("webdataset", str(tmp_path)).ids == ["0/7", "1/7"]


def test_a_key_twice_in_one_shard_is_refused(tmp_path):
    shard = write_shard(tmp_path / "0.tar", members("7", 0, "a") + members("7", 1, "b"))
    with pytest.raises(UserError, match=r"0\.tar has '7\.png' twice"):
        open_pairs("webdataset", str(shard))


def test_captions_come_from_json_where_there_is_no_txt_and_unpaired_keys_are_said(tmp_path, capsys):
    lone = members("3", 3, "lost")
    rows = (
        members("1", 1, "one")[::2]
        + lone[:1]
        + members("4", 4, "no picture")[1:]
        + members("2", 2, "two")[:2]
    )
    shard = write_shard(tmp_path / "0.tar", rows)
    pairs = open_pairs("webdataset", str(shard))
    assert (pairs.ids, pairs.captions) == (["1", "2"], [["one"], ["two"]])
    assert "2 keys lack a picture, a sound or a caption and are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "cut", ["within the picture", "before the caption", "within a header", "before the end mark"]
)
def test_a_shard_cut_in_half_is_refused_or_read_up_to_the_cut(shards, cut):
    shard = shards / "00010.tar"
    with tarfile.open(shard) as tar:
        picture, caption, record = tar.getmembers()[3:]
    length = {
        "within the picture": picture.offset_data + picture.size // 2,
        "before the caption": caption.offset,
        "within a header": caption.offset + 100,
        "before the end mark": record.offset_data + 512,
    }[cut]
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(UserError, match=r"00010\.tar: the tar is cut short after key '.*--skip_unreadable"):
        open_pairs("webdataset", str(shards))
    pairs = open_pairs("webdataset", str(shards), skip_unreadable=True)
    whole = ["000090001", "000090000", "000100000"]
    assert pairs.ids == ([*whole, "000100001"] if cut == "before the end mark" else whole)
    assert np.array_equal(np.asarray(pairs.image(2)), picture_files.pixels(2))
    assert [item["path"] for item in pairs.unreadable] == [str(shard)]
    assert open_pairs(**pairs.source).ids == pairs.ids


@pytest.mark.parametrize(("suffix", "content"), [(".txt", b"caf\xe9"), (".json", b"["), (".json", b"[]")])
def test_a_caption_that_is_no_text_is_refused_or_left_out_and_listed(tmp_path, suffix, content):
    """Another shard's row of the same key stays."""
    broken = [members("7", 0, "")[0], (f"7{suffix}", content), *members("8", 1, "one")]
    write_shard(tmp_path / "0.tar", broken)
    write_shard(tmp_path / "1.tar", members("7", 2, "two"))
    with pytest.raises(UserError, match=rf"0\.tar/7{suffix}: holds no caption \(.*--skip_unreadable"):
        open_pairs("webdataset", str(tmp_path))
    pairs = open_pairs("webdataset", str(tmp_path), skip_unreadable=True)
    assert (pairs.ids, pairs.captions) == (["8", "7"], [["one"], ["two"]])
    assert [item["path"] for item in pairs.unreadable] == [f"0.tar/7{suffix}"]
    assert open_pairs(**pairs.source).ids == pairs.ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"no tar" * 200, "not a whole, uncompressed tar"),
        (b"\x1f\x8b" + b"x" * 999, "not a whole"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path, content, message):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=rf"0\.tar: .*{message}"):
        open_pairs("webdataset", str(tmp_path))


def test_a_shard_that_is_not_there_is_named(shards):
    with pytest.raises(UserError, match=r"no shard at .*00011\.tar; type --data_root 'shards/"):
        open_pairs("webdataset", str(shards / "{00009..00011}.tar"))


# --------------------------------------------------------------------------------------------------------- hf


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return datasets


def hf_table(datasets, count: int = 3, **columns):
    pictures = [{"bytes": picture_files.encoded(drawing(row)), "path": None} for row in range(count)]
    table = {"image": pictures, "caption": [f"text {row}" for row in range(count)]} | columns
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


@pytest.mark.parametrize("form", ["disk", "parquet file", "parquet folder", "splits on disk", "bare parquet"])
def test_hf_reads_local_data_in_every_form(tmp_path, hub_cache, form):
    table, path = hf_table(hub_cache, id=["c", "a", "b"]), tmp_path / "birds"
    if form == "disk":
        table.save_to_disk(path)
    elif form == "splits on disk":
        hub_cache.DatasetDict(train=table, test=hf_table(hub_cache, 2)).save_to_disk(path)
    elif form == "bare parquet":  # as other tools write it: bytes in a struct, no features in its metadata
        import pyarrow.parquet

        path = tmp_path / "birds.parquet"
        pyarrow.parquet.write_table(table.data.table.replace_schema_metadata(None), path)
    else:
        path = tmp_path / "birds.parquet" if form == "parquet file" else path / "train.parquet"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path)
        path = path if form == "parquet file" else path.parent
    pairs = open_pairs(f"hf:{path}", split="train" if form == "splits on disk" else None)
    assert (pairs.name, pairs.ids) == ("birds", ["c", "a", "b"])
    assert pairs.captions == [["text 0"], ["text 1"], ["text 2"]]
    pairs = pickle.loads(pickle.dumps(pairs))
    assert all(np.array_equal(np.asarray(pairs.image(row)), picture_files.pixels(row)) for row in range(3))


def test_hf_columns_captions_in_lists_and_nulls(tmp_path, hub_cache, capsys):
    table = hf_table(hub_cache, alt=[["a", "b"], None, ["c"]]).rename_column("image", "photo")
    table.save_to_disk(tmp_path / "birds")
    pairs = open_pairs(f"hf:{tmp_path}/birds", image_column="photo", text_column="alt", caption="all")
    assert (pairs.ids, pairs.captions) == (["0", "2"], [["a", "b"], ["c"]])
    assert np.array_equal(np.asarray(pairs.image(1)), picture_files.pixels(2))
    assert "1 of 3 rows have no caption and are left out" in capsys.readouterr().err
    assert open_pairs(**json.loads(json.dumps(pairs.source))).ids == pairs.ids


@pytest.mark.parametrize(
    ("split", "ids"), [("train[:2]", "01"), ("test", "01"), ("train[2:]", "2"), ("train[:1]+train[2:]", "02")]
)
def test_hf_splits_of_saved_data_may_be_cut(tmp_path, hub_cache, split, ids):
    hub_cache.DatasetDict(train=hf_table(hub_cache), test=hf_table(hub_cache, 2)).save_to_disk(
        tmp_path / "both"
    )
    pairs = open_pairs(f"hf:{tmp_path}/both", split=split, id_column="none")
    assert [text[0][-1] for text in pairs.captions] == list(ids)
    assert np.array_equal(np.asarray(pairs.image(len(pairs) - 1)), picture_files.pixels(int(ids[-1])))
    for wrong in ("valid", "train[", "train[:2"):
        with pytest.raises(UserError, match=r"split .* cannot be opened"):
            open_pairs(f"hf:{tmp_path}/both", split=wrong)


def test_hf_names_with_brackets_and_braces_mean_themselves_or_are_refused(tmp_path, hub_cache):
    for name in ("a[1]", "b{x,y}", "c d"):
        (tmp_path / name).mkdir()
        hf_table(hub_cache).to_parquet(tmp_path / name / f"{name}.parquet")
        assert len(open_pairs(f"hf:{tmp_path}/{name}/{name}.parquet")) == 3
    assert len(open_pairs(f"hf:{tmp_path}/b{{x,y}}")) == 3
    with pytest.raises(UserError, match=r"a\[1\]': in a folder whose name holds \[.*rename it"):
        open_pairs(f"hf:{tmp_path}/a[1]")
    with pytest.raises(UserError, match=r"is of no kind that hf: reads; .*\.parquet"):
        open_pairs(f"hf:{__file__}")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_hf_tables_keep_captions_that_look_like_no_value(tmp_path, hub_cache, delimiter):
    (tmp_path / "0.png").write_bytes(picture_files.encoded(drawing(0)))
    path = tmp_path / ("table.csv" if delimiter == "," else "table.tsv")
    texts = ["None", "NA", 'a "b", c\td', ""]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(
            [["caption", "photo"], *([t, "0.png"] for t in texts)]
        )
    table = huggingface.load(str(path), None, "train")
    assert table["caption"][:] == texts


def test_hf_texts_that_are_no_utf8_are_named(tmp_path, hub_cache):
    import pyarrow
    import pyarrow.parquet

    ends, content = np.array([0, 1, 2], np.int32).tobytes(), b"\xffa"
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, *map(pyarrow.py_buffer, (ends, content))])
    table = pyarrow.table({"image": [b"1", b"2"], "caption": texts})
    pyarrow.parquet.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="column 'caption' of .* cannot be read .*utf-8"):
        open_pairs(f"hf:{tmp_path}/bad.parquet")


def test_hf_mistakes_name_what_there_is(tmp_path, hub_cache):
    table = hf_table(hub_cache, id=["x", "y", "x"])
    table.to_parquet(tmp_path / "birds.parquet")
    birds = f"hf:{tmp_path}/birds.parquet"
    with pytest.raises(
        UserError, match="has no column 'photo'; its columns are: image, caption, id; type --image_column"
    ):
        open_pairs(birds, image_column="photo")
    with pytest.raises(UserError, match=r"has no column 'alt'; .*type --text_column"):
        open_pairs(birds, text_column="alt")
    with pytest.raises(UserError, match=r"column 'caption' .*not pictures; type --image_column"):
        open_pairs(birds, image_column="caption", id_column="none")
    with pytest.raises(UserError, match=r"row 0 of column 'image' .* is no text; type --text_column"):
        open_pairs(birds, text_column="image", id_column="none")
    with pytest.raises(UserError, match=r"'id' of .* has 'x' twice; --id_column none numbers the rows"):
        open_pairs(birds)
    assert open_pairs(birds, id_column="none").ids == ["0", "1", "2"]
    hf_table(hub_cache, id=["x", None, None]).to_parquet(tmp_path / "nameless.parquet")
    with pytest.raises(UserError, match=r"row 1 of column 'id' of .* has no id; --id_column none"):
        open_pairs(f"hf:{tmp_path}/nameless.parquet")
    with pytest.raises(
        UserError, match=r"data set 'nobody/nothing' .*cannot be opened .*--subset and --split"
    ):
        open_pairs("hf:nobody/nothing")
    hub_cache.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match="has several splits; type --split with one of: train, test"):
        open_pairs(f"hf:{tmp_path}/splits")


def test_a_broken_parquet_file_is_one_line(tmp_path, hub_cache):
    (tmp_path / "birds.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"birds\.parquet' .*cannot be opened"):
        open_pairs(f"hf:{tmp_path}/birds.parquet")


# ------------------------------------------------------------------------------------ the same data, any form


def test_four_forms_of_the_same_pictures_are_the_same(tmp_path, hub_cache, monkeypatch):
    """Odd pictures among them; the order is alphabetical in none of the forms. Recorded, they are the same too."""
    odd = [(content, seen) for _, content, seen in picture_files.READABLE.values()]
    count = 50
    files = [odd[row] if row < len(odd) else picture_files.plain(24, 16 + row) for row in range(count)]
    captions = [f"picture {row}" for row in range(count)]
    names = [f"{1000 - row * 7}.png" for row in range(count)]

    folder = listed(
        tmp_path / "folder", {name: content for name, (content, _) in zip(names, files, strict=True)}
    )
    lines = [f"{name}\t{caption}" for name, caption in zip(names, captions, strict=True)]
    (folder / "captions.jsonl").unlink()
    (folder / "captions.tsv").write_text("\n".join(lines))

    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "train2017").symlink_to(folder)
    tables = {
        "images": [{"id": row, "file_name": names[row]} for row in reversed(range(count))],
        "annotations": [{"id": 99 - n, "image_id": n, "caption": captions[n]} for n in range(count)],
    }
    (coco / "annotations/captions_train2017.json").write_text(json.dumps(tables))

    rows = [(name, content, text) for name, (content, _), text in zip(names, files, captions, strict=True)]
    for number in range(2):
        half = rows[number * 20 : 20 + number * 30]
        write_shard(
            tmp_path / f"tars/{number}.tar",
            [pair for n, c, t in half for pair in ((n, c), (n.replace("png", "txt"), t.encode()))],
        )

    table = {
        "image": [{"bytes": content, "path": None} for _, content, _ in rows],
        "caption": captions,
        "id": names,
    }
    hub_cache.Dataset.from_dict(table).cast_column("image", hub_cache.Image()).to_parquet(
        tmp_path / "hf.parquet"
    )

    forms = [
        open_pairs("folder", str(folder)),
        open_pairs("coco", str(coco)),
        open_pairs("webdataset", f"{tmp_path}/tars/{{0..1}}.tar"),
        open_pairs(f"hf:{tmp_path}/hf.parquet"),
    ]
    for pairs in forms:
        assert pairs.captions == [[caption] for caption in captions], pairs.name
        for row, (_, seen) in enumerate(files):
            assert np.array_equal(np.asarray(pairs.image(row)), seen), (pairs.name, row)
    assert forms[0].fingerprint == forms[3].fingerprint
    assert [f"{name}.png" for name in forms[2].ids] == forms[0].ids

    monkeypatch.chdir(tmp_path)
    import train_image

    recorded = []
    for number, pairs in enumerate(forms):
        words = ["--dataset", pairs.source["dataset"], "--layers", "-1", "--runname", f"form{number}"]
        words += ["--data_root", pairs.source["data_root"]] if pairs.source["data_root"] else []
        (run,) = train_image.main(words)
        recorded.append(run.load("layer2").toarray())
        assert [sample["caption"] for sample in run.samples()] == captions
    assert np.count_nonzero(recorded[0]) > count
    for other in recorded[1:]:
        np.testing.assert_array_equal(other, recorded[0])


# ----------------------------------------------------------------------------------------------------- sounds


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


# ------------------------------------------------------------------------------------------- the command line


def test_the_script_prints_what_a_data_set_holds(damaged, tmp_path, capsys):
    """Counts by hand: the readable row has one caption of two words, "a wren"."""
    sheet, report = tmp_path / "out" / "sheet.png", tmp_path / "report.json"
    held = check.main(
        ["--dataset", "folder", "--data_root", str(damaged), "--sheet", str(sheet), "--json", str(report)]
    )
    out, err = capsys.readouterr()
    assert held["rows"] == 1
    assert held["caption_words"] == (2, 2, 2)
    assert held["caption_characters"] == (6, 6, 6)
    assert held["fingerprint"] == features.fingerprint([("deep/a.png", "a wren")])
    assert json.loads(report.read_text()) == json.loads(json.dumps(held))
    assert "b.png: the file is empty" in out
    assert "give every run --skip_unreadable" in out
    assert "looking for unreadable items" in err
    tile = np.asarray(Image.open(sheet).convert("RGB"))[sheets.TITLE :, : sheets.GAP + sheets.PICTURE]
    tile = tile[: sheets.PICTURE]
    assert tile.std() > 20  # the picture is there


def test_the_script_reports_a_mistake_in_one_line(capsys):
    with pytest.raises(SystemExit) as left:
        check.main(["--dataset", "imagenet"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_options_reach_the_data_set(folder):
    parser = commandline.Parser("a script")
    parser.add_argument("--lr")
    commandline.add_flags(parser, data.FLAGS)
    options = [
        "--dataset",
        "folder",
        "--data_root",
        str(folder),
        "--limit",
        "1",
        "--caption",
        "all",
        "--lr",
        "3",
    ]
    pairs = open_pairs(**commandline.chosen(parser.parse_args(options), data.FLAGS))
    assert pairs.captions == [["a robin", "a red bird"]]
