"""The run folder: what is written is read back, and what is not whole is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from runs import make_run

import features
import parts
import samples
from comparing import kept as kept_module
from plumbing.errors import UserError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def codes(n_samples=10, d_sae=6, seed=0):
    values = np.random.default_rng(seed).random((n_samples, d_sae)).astype(np.float32)
    return np.where(values > 0.6, values, 0)


def test_what_is_recorded_is_read_back_in_row_order_over_many_parts():
    x = codes(n_samples=25)
    run = make_run("clip", {"layer0": x, "layer1": 2 * x}, part_rows=4)
    assert features.open_run("clip") == run
    assert run.layers == ["layer0", "layer1"]
    assert run.d_sae("layer1") == 6
    np.testing.assert_array_equal(run.load("layer0").toarray(), x)
    np.testing.assert_array_equal(np.vstack([b.toarray() for b in run.blocks("layer1")]), 2 * x)
    assert [block.shape[0] for block in run.blocks("layer0")] == [4, 4, 4, 4, 4, 4, 1]
    assert run.load("layer0").dtype == np.float32


@pytest.mark.parametrize("rows", [(0, 25), (3, 9), (4, 8), (11, 11), (24, 25), (20, 99)])
def test_some_rows_are_read_from_the_files_that_hold_them(rows, monkeypatch):
    x = codes(n_samples=25)
    run = make_run("clip", {"layer0": x}, part_rows=4)
    read, opened = parts.read_part, []
    monkeypatch.setattr(parts, "read_part", lambda part: opened.append(part.name) or read(part))
    blocks = [block.toarray() for block in run.blocks("layer0", slice(*rows))]
    np.testing.assert_array_equal(np.vstack([np.empty((0, 6)), *blocks]), x[slice(*rows)])
    first, last = rows[0], min(rows[1], 25)
    numbers = range(first // 4, -(-last // 4)) if first < last else ()
    assert opened == [f"features-{number:05d}.npz" for number in numbers]


def test_eleven_parts_and_more_keep_their_order():
    x = codes(n_samples=12)
    run = make_run("clip", {"layer0": x}, part_rows=1)
    np.testing.assert_array_equal(run.load("layer0").toarray(), x)


def test_samples_keep_odd_captions():
    captions = ["a\u2028line separator", "", 'quote " and \\ and\ttab', "日本語"]
    run = make_run("clip", {"layer0": codes(4)}, captions=captions)
    found = run.samples()
    assert (list(found.captions), found.captions[2], found.captions[-2:]) == (
        captions,
        captions[2],
        captions[2:],
    )
    assert list(found.ids) == [f"sample{row}" for row in range(len(found))]


def test_the_same_codes_give_the_same_bytes(tmp_path):
    x = codes()
    files = []
    for name in ("one", "two"):
        run = make_run(name, {"layer0": x})
        files.append((run.path / "layer0" / "features-00000.npz").read_bytes())
    assert files[0] == files[1]


def test_an_unknown_run_names_the_known_ones():
    make_run("clip", {"layer0": codes()})
    make_run("bert", {"layer0": codes()})
    with pytest.raises(
        UserError,
        match="no run named 'clop' in sae_features/; did you mean clip[?] recorded runs: bert, clip",
    ):
        features.open_run("clop")


def test_the_path_of_a_run_is_a_name_too_and_no_path_leads_out():
    make_run("clip", {"layer0": codes()})
    assert features.open_run("sae_features/clip/").name == "clip"
    for name in ("../clip", "a/b", "", ".hidden"):
        with pytest.raises(UserError, match="is no name for a run"):
            features.run_path(name)


def test_a_run_without_its_manifest_is_incomplete():
    run = make_run("clip", {"layer0": codes()})
    (run.path / "run.json").unlink()
    with pytest.raises(UserError, match="run 'clip' is incomplete .*give its train command again"):
        features.open_run("clip")
    assert features.run_names() == []


@pytest.mark.parametrize("content", ["{", "", "[]", "{}", '{"format_version": 3}'])
def test_a_foreign_or_damaged_manifest_is_refused(content):
    run = make_run("clip", {"layer0": codes()})
    (run.path / "run.json").write_text(content)
    with pytest.raises(UserError, match="damaged|format version"):
        features.open_run("clip")


def test_a_cut_part_is_refused():
    run = make_run("clip", {"layer0": codes()})
    part = run.path / "layer0" / "features-00000.npz"
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(UserError, match="features-00000.npz is damaged"):
        run.load("layer0")


def test_a_missing_part_is_refused():
    run = make_run("clip", {"layer0": codes()}, part_rows=4)
    (run.path / "layer0" / "features-00001.npz").unlink()
    with pytest.raises(UserError, match="layer0 holds 6 rows and the manifest says 10"):
        run.load("layer0")


@pytest.mark.parametrize(
    "change",
    [
        {"layers": None},
        {"layers": []},
        {"n_samples": "10"},
        {"dataset": "coco"},
        {"dataset": {"name": "coco"}},
        {"encoder": {"model": "x"}},
    ],
)
def test_a_manifest_that_lacks_a_key_or_holds_another_type_is_one_line(change):
    run = make_run("clip", {"layer0": codes()})
    whole = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(whole | change))
    with pytest.raises(UserError, match=rf"clip/run.json is damaged \({next(iter(change))}: missing"):
        features.open_run("clip")


def test_layers_are_found_by_number():
    run = make_run("clip", {"layer3": codes(), "layer11": codes()})
    assert [run.layer(number) for number in (-1, -2, 3, 11)] == ["layer11", "layer3", "layer3", "layer11"]
    with pytest.raises(UserError, match="no layer 4; it has layer3, layer11"):
        run.layer(4)
    with pytest.raises(UserError, match="no layer -3"):
        run.layer(-3)


def in_the_older_format(run):
    """Rewrite a run as format 1 had it: its fingerprint is of the ids alone."""
    ids = "".join(f"{name}\n" for name in run.samples().ids)
    old = {
        "format_version": 1,
        "dataset": {"name": "old", "fingerprint": hashlib.sha256(ids.encode()).hexdigest()},
    }
    (run.path / "run.json").write_text(json.dumps(run.manifest | old))
    return features.open_run(run.name)


def test_the_fingerprint_is_sha256_over_lines_of_id_tab_first_caption():
    expected = hashlib.sha256("a.png\ta caf\xe9\nb.png\t\n".encode()).hexdigest()
    assert features.fingerprint([("a.png", "a caf\xe9"), ("b.png", "")]) == expected


@pytest.mark.parametrize("age", [(), ("here",), ("there",), ("here", "there")])
def test_the_same_ids_with_other_captions_are_other_samples_for_older_runs_too(age):
    runs = {name: make_run(name, {"layer0": codes()}) for name in ("here", "same")}
    runs["there"] = make_run("there", {"layer0": codes()}, captions=[f"a car {row}" for row in range(10)])
    runs |= {name: in_the_older_format(runs[name]) for name in age}
    features.check_aligned([runs["here"], runs["same"]])
    with pytest.raises(UserError, match=r"'here' and 'there' are not comparable: .* against "):
        features.check_aligned([runs["here"], runs["there"]])


def test_kept_scores_are_not_of_a_run_whose_samples_changed():
    old = in_the_older_format(make_run("old", {"layer0": codes()}))
    kept = kept_module.identity(old)
    samples.write(old.path, [{"id": name, "image": "", "caption": "another"} for name in old.samples().ids])
    assert kept_module.identity(features.open_run("old")) != kept


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        '{"id": "sample0"',
        "\xff",
        '{"id": "a", "image": "", "caption": ""}\n' * 9,
        '{"id": 1, "image": "", "caption": ""}\n' * 10,
        '{"id": "a", "image": ""}\n' * 10,
        '{"id": "a", "image": "", "caption": null}\n' * 10,
        "[]\n" * 10,
    ],
)
def test_a_run_that_does_not_tell_its_samples_is_refused(content):
    run = make_run("clip", {"layer0": codes()})
    path = run.path / "samples.jsonl"
    path.unlink() if content is None else path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="'clip' does not tell which 10 samples it is of: .*samples.jsonl"):
        run.samples()
    run.manifest["format_version"] = 1
    (run.path / "run.json").write_text(json.dumps(run.manifest))
    with pytest.raises(UserError, match="'clip' does not tell which 10 samples it is of: .*samples.jsonl"):
        features.open_run("clip")


def test_runs_of_the_original_do_not_hide_that_others_differ(capsys):
    Path("sae_features/old").mkdir(parents=True)
    torch.save(torch.zeros(10, 6), "sae_features/old/layer0.pt")
    old = features.open_run("old")
    one, other = (
        make_run("one", {"layer0": codes()}),
        make_run("other", {"layer0": codes()}, captions=["x"] * 10),
    )
    features.check_aligned([one, old])
    assert capsys.readouterr().err.count("run 'old' does not name its samples") == 1
    with pytest.raises(UserError, match="'one' and 'other'"):
        features.check_aligned([old, one, other])


def test_runs_of_other_samples_are_not_comparable():
    one = make_run("one", {"layer0": codes()})
    same = make_run("same", {"layer0": codes(seed=1)})
    other = make_run("other", {"layer0": codes()}, ids=[f"else{i}" for i in range(10)], dataset_name="coco")
    short = make_run("short", {"layer0": codes(9)})
    features.check_aligned([one, same])
    with pytest.raises(UserError, match=r"'one' and 'other' .*handmade \(10 samples.*coco \(10 samples"):
        features.check_aligned([one, same, other])
    with pytest.raises(UserError, match="'one' and 'short'"):
        features.check_aligned([one, short])


def test_a_run_of_the_original_code_is_read(tmp_path):
    folder = tmp_path / "sae_features" / "old"
    folder.mkdir(parents=True)
    x = codes(n_samples=features.PART_ROWS + 5)
    for number, scale in ((2, 1), (10, 2), (-1, 3)):
        torch.save(torch.from_numpy(scale * x).half(), folder / f"layer{number}.pt")
    run = features.open_run("old")
    assert run.layers == ["layer2", "layer10", "layer-1"]
    assert run.layer(-1) == "layer-1"
    assert run.n_samples == len(x)
    assert [block.shape[0] for block in run.blocks("layer10")] == [features.PART_ROWS, 5]
    half = torch.from_numpy(2 * x).half().float().numpy()
    np.testing.assert_array_equal(run.load("layer10").toarray(), half)
    assert "old" in features.run_names()


def test_a_pickle_that_is_no_tensor_is_never_executed(tmp_path):
    folder = tmp_path / "sae_features" / "old"
    folder.mkdir(parents=True)

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save(Attack(), folder / "layer0.pt")
    with pytest.raises(UserError, match=r"layer0.pt cannot be read as a tensor"):
        features.open_run("old")
    assert not (tmp_path / "executed").exists()


def test_blocks_are_csr_and_the_manifest_is_json():
    run = make_run("clip", {"layer0": codes()})
    assert all(scipy.sparse.issparse(b) and b.format == "csr" for b in run.blocks("layer0"))
    assert json.loads((run.path / "run.json").read_text())["format_version"] == features.FORMAT_VERSION
