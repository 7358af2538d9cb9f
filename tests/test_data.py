"""Pairs: the same rows from any kind of data set, their fingerprint and stamp, and mistakes in the arguments."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import picture_files
import pytest
from data_files import drawing, hf_table, listed, members, write_folder, write_shard

import data
import features
from data import open_pairs
from plumbing.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_mistakes_in_the_arguments_name_the_valid_ones(folder):
    with pytest.raises(UserError, match="'imagenet' is unknown; the data sets are: demo, coco, folder"):
        open_pairs("imagenet")
    with pytest.raises(UserError, match="--limit 0 leaves no rows"):
        open_pairs("folder", str(folder), limit=0)
    with pytest.raises(UserError, match="'best' is no choice of captions: type first, all, or a number"):
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
        assert list(run.samples().captions) == captions
    assert np.count_nonzero(recorded[0]) > count
    for other in recorded[1:]:
        np.testing.assert_array_equal(other, recorded[0])
