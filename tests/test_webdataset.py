"""Tar shards: the order of their rows, the patterns that name them, and shards that are damaged."""

import io
import json
import subprocess
import tarfile

import numpy as np
import picture_files
import pytest
from data_files import drawing, members, write_shard

from data import open_pairs
from plumbing.errors import UserError
from sources import webdataset

pytestmark = pytest.mark.usefixtures("own_cache")


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
    with pytest.raises(UserError, match=r"00010\.tar: the tar is cut short after '.*--skip_unreadable"):
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
    assert "captions of 1 rows hold unpaired surrogates" in capsys.readouterr().err
    assert pairs.image(1).size == (24, 16)
    assert len({pairs.fingerprint, pairs.file_stamp()}) == 2
    for text in (*pairs.ids, *pairs.images, json.dumps(pairs.source)):
        assert text.encode().decode() == text
