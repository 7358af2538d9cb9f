"""The index of a data set: the same rows as the data set's files, read once, and again when they change."""

import io
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_files import hf_table, members, write_folder, write_shard

from data import open_pairs
from plumbing import files
from plumbing.errors import UserError
from sources import index, rows, tars
from sources.opened import Opened, Sample, Span
from toyworld import scenes

pytestmark = pytest.mark.usefixtures("own_cache")


def all_of(pairs):
    return [*pairs.samples], pairs.fingerprint, pairs.unreadable, pairs.source


def files_of_indexes():
    return sorted(files.cache_folder().glob("rows-*.arrow"))


@pytest.mark.parametrize("kind", ["demo", "coco", "folder", "webdataset", "text", "hf"])
def test_a_second_opening_has_the_same_rows_and_reads_no_data_set(
    tmp_path, coco, folder, shards, hub_cache, kind, monkeypatch
):
    monkeypatch.setattr(scenes, "N_DEMO", 20)
    (tmp_path / "lines.txt").write_text("a cat\n\na dog\n")
    hf_table(hub_cache, caption=[["a", "b"], [], ["c"]]).to_parquet(tmp_path / "birds.parquet")
    places = {
        "demo": None,
        "coco": coco,
        "folder": folder,
        "webdataset": shards,
        "text": tmp_path / "lines.txt",
    }
    name = f"hf:{tmp_path}/birds.parquet" if kind == "hf" else kind
    root = str(places[kind]) if places.get(kind) else None
    asked = [{}, {"limit": 1}, {"caption": "all"}]
    first = [all_of(open_pairs(name, root, **options)) for options in asked]
    monkeypatch.setattr(index, "_read", None)  # reading the data set would call it
    assert [all_of(open_pairs(name, root, **options)) for options in asked] == first
    assert len(files_of_indexes()) == 1


def test_what_was_lost_and_said_is_told_at_every_opening(tmp_path, capsys):
    rows = (
        members("1", 1, "one") + members("2", 2, "alone")[:1] + [members("3", 3, "")[0], ("3.txt", b"\xe9")]
    )
    shard = write_shard(tmp_path / "0.tar", rows)
    for _ in range(2):
        with pytest.raises(UserError, match=r"0\.tar/3\.txt: holds no caption"):
            open_pairs("webdataset", str(shard))
        assert "1 keys lack a picture, a sound or a caption" in capsys.readouterr().err


def test_an_index_is_written_again_when_a_shard_changes_grows_or_goes(shards):
    first = open_pairs("webdataset", str(shards)).ids
    write_shard(shards / "00010.tar", members("8", 2, "two"))
    assert open_pairs("webdataset", str(shards)).ids == [*first[:2], "8"]
    write_shard(shards / "00011.tar", members("9", 2, "two"))
    assert open_pairs("webdataset", str(shards)).ids == [*first[:2], "8", "9"]
    (shards / "00010.tar").unlink()
    assert open_pairs("webdataset", str(shards)).ids == [*first[:2], "9"]
    assert len(files_of_indexes()) == 1


def test_an_index_is_of_one_folder_one_option_and_one_place_to_stand(tmp_path, monkeypatch):
    """A relative path is in it as it was typed."""
    for name in ("one", "two"):
        write_folder(tmp_path / name / "data", {f"{name}.png": [name]})
        monkeypatch.chdir(tmp_path / name)
        pairs = open_pairs("folder", "data")
        assert pairs.ids == [f"{name}.png"]
        assert pairs.image(0).size == (24, 16)
    assert len(files_of_indexes()) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "other", "words"])
def test_a_damaged_index_is_written_again(shards, damage):
    whole = all_of(open_pairs("webdataset", str(shards)))
    (file,) = files_of_indexes()
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "zeros": content[:600] + bytes(len(content) - 1200) + content[-600:],
            "other": b"no index",
            "words": content.replace(b'"stamp"', b'"stump"'),
        }[damage]
    )
    assert all_of(open_pairs("webdataset", str(shards))) == whole
    assert file.read_bytes() == content


def _opened(root, ready, results):
    ready.wait()
    results.put(all_of(open_pairs("webdataset", root)))


def test_processes_that_open_a_data_set_at_once_have_the_same_rows(shards):
    processes = multiprocessing.get_context("fork")
    ready, results = processes.Barrier(3), processes.Queue()
    started = [processes.Process(target=_opened, args=(str(shards), ready, results)) for _ in range(3)]
    for one in started:
        one.start()
    found = [results.get(timeout=60) for _ in started]
    for one in started:
        one.join()
    assert found == [all_of(open_pairs("webdataset", str(shards)))] * 3
    assert [file.name for file in files.cache_folder().iterdir()] == [files_of_indexes()[0].name]


def test_pickled_pairs_name_the_index_and_refuse_another_state_of_it(tmp_path):
    rows = [row for number in range(500) for row in members(f"{number:03d}", 0, f"text {number}")[:2]]
    shard = write_shard(tmp_path / "0.tar", rows)
    pairs = open_pairs("webdataset", str(shard), limit=400, unreadable=[{"id": "003"}])
    content = pickle.dumps(pairs)
    assert len(content) < 500 * 10
    again = pickle.loads(content)
    assert all_of(again) == all_of(pairs)
    write_shard(shard, rows[2:])
    assert len(open_pairs("webdataset", str(shard))) == 499
    with pytest.raises(UserError, match="has been written again, since the data set has changed"):
        pickle.loads(content)
    assert pairs.ids == [f"{number:03d}" for number in range(400) if number != 3]  # what is open stays


def test_where_no_cache_can_be_written_rows_are_in_memory(shards, tmp_path, monkeypatch):
    kept = open_pairs("webdataset", str(shards))
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    pairs = open_pairs("webdataset", str(shards), limit=3)
    assert all_of(pickle.loads(pickle.dumps(pairs)))[0] == [*kept.samples[:3]]


def test_rows_are_a_sequence_like_a_list_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "BATCH_ROWS", 4)
    monkeypatch.setattr(rows, "BATCH_ROWS", 4)
    samples = [
        Sample(str(row), f"{row}.png", [f"{row} a", f"{row} b"][: 1 + row % 2], row) for row in range(11)
    ]
    samples[5] = samples[5]._replace(place=Span("caf\udce9/0.tar", 512, 9))
    samples[6] = samples[6]._replace(place="caf\udce9.png")
    found, lost = index.indexed(Opened("x", samples, len, None))
    assert (len(found), [*found], lost) == (11, samples, [])
    assert [found[row] for row in range(11)] == samples
    assert (found[-1], found[np.int64(3)]) == (samples[-1], samples[3])
    with pytest.raises(IndexError):
        found[11]
    for part in (slice(3), slice(2, 9), slice(1, 10, 3), slice(None, None, -1), slice(20, None)):
        assert ([*found[part]], [*found[part][1:]]) == (samples[part], samples[part][1:])
    some = found[:9].without(["3", "8", "10"])
    assert [*some] == [sample for sample in samples[:9] if sample.id not in "38"]
    assert [*some[2:4]] == [samples[2], samples[4]]
    assert rows.Column(found[:2].with_caption(1), "captions") == [[], ["1 b"]]
    assert rows.Column(found, "id") != [str(row) for row in range(10)]
    assert [*index.indexed(Opened("x", [], len, None))[0]] == []


def test_an_id_twice_is_refused_with_both_rows():
    samples = [Sample(name, "a.png", ["a"], row) for row, name in enumerate("abca")]
    with pytest.raises(UserError, match="id 'a' occurs twice, in rows 0 and 3; type less"):
        index.indexed(Opened("x", samples, len, None, id_help="type less"))


def as_tar(path: Path, form: int, names: list[str], mtime: float = 0) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 100 * number, mtime
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_plain_tars_are_read_as_tarfile_reads_them(tmp_path, form):
    names = [f"a/{number}.png" for number in range(8)]
    tar = as_tar(tmp_path / "0.tar", form, names, 1.5 if form == tarfile.PAX_FORMAT else 0)
    assert (tars.plain_members(tar), None) == tars.any_members(tar)
    assert [(one.name, one.size) for one in tars.plain_members(tar)] == [
        (n, 100 * i) for i, n in enumerate(names)
    ]


def test_tars_that_hold_more_than_files_are_left_to_tarfile(tmp_path):
    long, links = [f"{'x' * 150}/{number}.png" for number in range(2)], tmp_path / "links.tar"
    odd = [as_tar(tmp_path / f"{form}.tar", form, [*long, "caf\xe9.png"]) for form in range(3)]
    with tarfile.open(links, "w") as tar:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/b.txt", tarfile.REGTYPE), ("c.txt", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a/b.txt"
            tar.addfile(member)
    flipped = bytearray(
        as_tar(tmp_path / "flipped.tar", tarfile.USTAR_FORMAT, ["a.png", "b.png", "c.png"]).read_bytes()
    )
    flipped[512] ^= 1  # in the second header, whose sum no longer fits
    (tmp_path / "flipped.tar").write_bytes(flipped)
    for tar in (*odd, links, tmp_path / "flipped.tar"):
        with pytest.raises(tars.Odd):
            tars.plain_members(tar)
        assert tars.members(tar) == tars.any_members(tar)
    assert [one.name for one in tars.members(odd[2])[0]] == [*long, "caf\xe9.png"]
    assert [one.name for one in tars.members(links)[0]] == ["a/b.txt"]
    assert tars.members(tmp_path / "flipped.tar")[1] == "the tar is cut short after 'a.png'"
