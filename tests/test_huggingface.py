"""Hugging Face data sets from local files in every form, and what their mistakes say."""

import csv
import json
import pickle

import numpy as np
import picture_files
import pytest
from data_files import drawing, hf_table

from data import open_pairs
from plumbing.errors import UserError
from sources import huggingface

pytestmark = pytest.mark.usefixtures("own_cache")


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
    with pytest.raises(
        UserError, match=r"id 'x' occurs twice, in rows 0 and 2; --id_column none numbers the rows"
    ):
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
