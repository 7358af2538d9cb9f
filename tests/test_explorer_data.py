"""The explorer's data: known answers of bands, strips and names of files, what is cut from commands, and its folder."""

import json
import os
import re

import numpy as np
import pytest
import scipy.sparse
from data_files import listed
from runs import make_run
from test_thumbnails import photograph

import data
import show
from comparing import compare
from comparing.per_feature import in_last_layers
from plumbing.commandline import without_folders
from plumbing.errors import UserError
from showing import sheets
from showing.explorer_data import slugs, write_captions
from showing.replaced import replacing_folder
from showing.samples import samples
from showing.strips import Columns, strips
from sources.opened import Sample

ROWS = 240
HOSTILE = ["</script><script>fired()</script>", "כלב שחור", "word " * 2000]


def put_values(file):
    """The key and the value of a data file."""
    found = re.fullmatch(r'explorer\.put\("(.+?)",(.+)\);\n', file.read_text("ascii"))
    return found[1], json.loads(found[2])


def test_bands_are_fifths_of_the_activations_lowest_first_and_silent_rows_are_silent():
    rows = np.arange(3, 63, 2)  # 30 rows, activation = row
    found = samples(7, rows, rows.astype(float), 80)
    assert [row for row, _ in found.top] == rows[::-1][:24].tolist()
    edges = [set(rows[6 * band : 6 * band + 6].tolist()) for band in range(5)]
    for band, edge in zip(found.bands, edges, strict=True):
        assert len(band) == 4
        assert {row for row, _ in band} <= edge
        assert [row for row, _ in band] == sorted(row for row, _ in band)
    assert len(set(found.silent)) == 4
    assert not set(found.silent) & set(rows.tolist())
    assert found.silent == sorted(found.silent)
    assert (found.low, found.high, sum(found.counts)) == (3, 61, 30)
    assert samples(7, rows, rows.astype(float), 80) == found


def test_few_activations_have_no_bands_and_a_feature_of_all_rows_no_silent_ones():
    assert samples(0, np.arange(15), np.ones(15), 15)[1:3] == ([], [])
    assert samples(0, np.arange(14), np.ones(14), 15).silent == [14]


def test_strips_are_where_both_fire_and_where_only_one_does():
    ours = np.array([[3, 0, 2, 0, 1, 4, 0, 2, 1, 1, 1, 1]]).T
    theirs = np.array([[1, 5, 4, 0, 0, 0, 0, 1, 9, 0, 0, 0]]).T
    columns = [Columns.of(scipy.sparse.csr_array(side.astype(np.float32))) for side in (ours, theirs)]
    ((both, here, there),) = strips(*columns, np.array([0]), np.array([0])).tolist()
    assert both == [8, 2, 0, 7, -1, -1]  # products 9, 8, 3, 2
    assert here == [5, 4, 9, 10, 11, -1]
    assert there == [1, -1, -1, -1, -1, -1]


def test_names_of_files_are_plain_and_each_its_own():
    assert slugs(["clip", "Clip", "clip 2", "כלב", "<img src=x>", "clip"]) == [
        "clip",
        "Clip-2",
        "clip-2-2",
        "run",
        "img-src-x",
        "clip-3",
    ]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/me/coco", "coco"),
        ("/home/me/coco/", "coco"),
        ("--data_root=/home/me/x", "--data_root=x"),
        ("local-dir:/home/me/clip", "local-dir:clip"),
        ("hf:/srv/data/set", "hf:set"),
        ("~/clip", "clip"),
        ("../me/clip", "clip"),
        (r"C:\Users\me\clip", "clip"),
        ("hf-hub:apple/DFN2B-CLIP-ViT-L-14", "hf-hub:apple/DFN2B-CLIP-ViT-L-14"),
        ("ViT-L/14-quickgelu", "ViT-L/14-quickgelu"),
        ("data/coco", "data/coco"),
        ("", ""),
    ],
)
def test_no_path_that_tells_whose_machine_it_is_is_written(word, shown):
    assert without_folders(word) == shown


def test_a_folder_is_replaced_whole_and_what_a_kill_left_is_put_back(tmp_path):
    folder = tmp_path / "explorer"

    def write(text):
        with replacing_folder(folder) as temporary:
            (temporary / "data").mkdir()
            (temporary / "data" / "meta.js").write_text(text)

    write("one")
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        1 / 0  # noqa: B018
    assert (folder / "data" / "meta.js").read_text() == "one"
    dead = 2**22 + 1  # above the highest process id
    folder.rename(tmp_path / f".explorer.old{dead}")
    (tmp_path / f".explorer.tmp{dead}").mkdir()
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        1 / 0  # noqa: B018
    assert (folder / "data" / "meta.js").read_text() == "one"
    write("two")
    assert (folder / "data" / "meta.js").read_text() == "two"
    assert os.listdir(tmp_path) == ["explorer"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    with pytest.raises(UserError, match="is no explorer"), replacing_folder(tmp_path / "mine"):
        pass


def test_a_link_stays_and_the_folder_that_it_names_is_replaced(tmp_path):
    """It may lead to another disk."""
    real, link = tmp_path / "disk" / "explorer", tmp_path / "explorer"
    (real / "data").mkdir(parents=True)
    (real / "data" / "meta.js").write_text("old")
    link.symlink_to(real)
    with replacing_folder(link) as temporary:
        (temporary / "new.txt").write_text("new")
    assert link.is_symlink()
    assert [file.name for file in real.iterdir()] == ["new.txt"]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with three runs of 240 samples: B's feature 0 is A's 2; T is of text; and A's explorer."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recorded(folder)
        words = ["--run", "A", "--html", "--layer", "0", "--compare", "B", f"--data_root={folder / 'odd'}"]
        (page,) = show.main([*words, "--min_group", "T", "--max_group", "B"])
        yield folder / page.parent


def recorded(folder):
    names = [f"{row}.jpg" for row in range(ROWS)]
    texts = [*HOSTILE, *(f"a {'red' if row % 4 else 'blue'} picture {row}" for row in range(3, ROWS))]
    root = listed(folder / "odd", dict.fromkeys(names, photograph()))
    (root / "captions.jsonl").write_text(
        "".join(
            json.dumps({"image": name, "caption": text}) + "\n"
            for name, text in zip(names, texts, strict=True)
        )
    )
    pairs = data.open_pairs("folder", str(root))
    (root / "1.jpg").unlink()
    dice = np.random.default_rng(0)
    codes = dice.random((ROWS, 5)) * (dice.random((ROWS, 5)) < 0.5)
    codes[:, 4] = 0
    codes[1, 2] = 9
    other = np.column_stack([codes[:, 2], dice.random(ROWS) < 0.5])
    text = np.array([[row % 4 > 0, 0.5 * (row % 3 == 0)] for row in range(ROWS)])
    common = {"source": pairs.source, "captions": [pairs.caption(row) for row in range(ROWS)]}
    secret = {"command": ["train_image.py", f"--data_root={root}"], "activation": "topk"}
    layers = {"layer0": codes, "layer1": codes[:, ::-1]}
    make_run("A", layers, pairs.ids, **common, **secret, fvu={"layer0": float("nan")})
    make_run("B", {"layer0": other, "layer1": other}, pairs.ids, **common, **secret)
    make_run("T", {"layer0": text}, pairs.ids, modality="text", **common, **secret)


def test_the_table_and_the_records_of_the_first_run(world):
    key, columns = put_values(world / "data" / "A-layer0.js")
    assert key == "table/A/layer0"
    assert columns["feature"] == [0, 1, 2, 3]  # 4 is never active
    assert columns["partner"]["B"][2] == 0
    assert columns["held_out"]["B"][2] == 1
    assert columns["floor"]["B"][2] < 0.3
    assert columns["status"][2] == "not in T, in B"
    _, records = put_values(world / "data" / "A-layer0" / "f000.js")
    assert [record["feature"] for record in records] == columns["feature"]
    assert records[2]["rank"][0] == 1
    assert records[2]["partners"]["B"][0][:3] == [0, 1, 1]
    assert records[2]["partners"]["B"][0][4:] == [[], []]
    assert records[2]["related"][0][0] != 2
    assert [slug for slug in records[0]["partners"]] == ["B", "T"]
    for at, record in enumerate(records):
        for slug, partners in record["partners"].items():
            assert not partners or partners[0][0] == columns["partner"][slug][at]


def test_names_are_those_of_the_captions(world):
    _, columns = put_values(world / "data" / "T-layer0.js")
    assert columns["name"][0].startswith("red")
    assert columns["by"][0] == "captions"


def test_the_matrix_is_of_the_layer_that_is_shown(world, monkeypatch):
    monkeypatch.chdir(world.parents[1])
    import features

    a, b = (features.open_run(name) for name in "AB")
    one, other = (run._replace(manifest=run.manifest | {"layers": ["layer0"]}) for run in (a, b))
    score = compare(one, other).wmppc["last_layer"]
    _, meta = put_values(world / "data" / "meta.js")
    for kind, value in zip(
        ("value", "floor", "held_out", "low", "high"),
        (score.value, score.floor, score.held_out, *score.interval),
        strict=True,
    ):
        assert meta["matrix"][kind][0][1] == pytest.approx(value, abs=1e-4)
    assert meta["matrix"]["value"][2][2] == 1
    _, columns = put_values(world / "data" / "A-layer0.js")
    held = in_last_layers(a, "layer0", [other])["B"].held_out
    assert columns["held_out"]["B"] == pytest.approx(held[:4], rel=0.01, abs=1e-3)


def test_what_the_page_is_told_and_what_it_is_not(world):
    _, meta = put_values(world / "data" / "meta.js")
    assert [run["name"] for run in meta["runs"]] == ["A", "B", "T"]
    assert meta["runs"][0]["layers"][0] | {"fvu": 0} == {
        **dict.fromkeys(["fvu_recorded", "l0", "dead_fraction", "dense_fraction"]),
        "fvu": 0,
        "name": "layer0",
        "d_sae": 5,
        "live": 4,
    }
    assert meta["runs"][0]["layers"][0]["fvu"] is None
    assert meta["no_picture"] == [1]
    assert meta["groups"]["min_group"] == ["T"]
    assert meta["runs"][0]["command"] == ["train_image.py", "--data_root=odd"]
    told = "".join(file.read_text("ascii") for file in (world / "data").rglob("*.js"))
    assert str(world.parents[1]) not in told
    assert "<" not in told


def test_captions_are_cut_and_thumbnails_are_there(world):
    _, captions = put_values(world / "data" / "captions" / "000.js")
    assert captions[:2] == HOSTILE[:2]
    assert captions[2] == HOSTILE[2][:300] + "…"
    assert not (world / "thumbs" / "000" / "000001.jpg").exists()
    assert (world / "thumbs" / "000" / "000002.jpg").stat().st_size > 100


def test_an_id_that_could_be_taken_for_the_row_stands_beside_it(tmp_path):
    names = ["1", "000001", "b.png"]
    rows = [Sample(name, "", [f"caption {name}"], row) for row, name in enumerate(names)]
    pairs = data.Pairs("numbered", rows, str)
    write_captions(pairs, tmp_path)
    assert put_values(tmp_path / "000.js")[1] == [["caption 1", "1"], "caption 000001", "caption b.png"]
    assert [sheets.numbered(pairs, row) for row in range(3)] == ["row 0, id 1", "row 1", "row 2"]
