"""The scan for unreadable items: done once, kept, and the same for image and text runs."""

import json

import pytest
from data_files import drawing

from data import open_pairs
from plumbing.errors import UserError
from sources import unreadable

pytestmark = pytest.mark.usefixtures("own_cache")


def test_an_unreadable_picture_stops_the_run_with_its_row(folder):
    (folder / "deep/a.png").write_bytes(b"")
    pairs = open_pairs("folder", str(folder))
    with pytest.raises(
        UserError, match=r"row 1 \(id 'deep/a\.png'\): cannot read deep/a\.png .*--skip_unreadable"
    ):
        pairs.image(1)


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
