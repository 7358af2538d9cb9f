"""What wmppc.py says of how far to trust a score: against the statistics in memory, and its references."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from runs import make_run

import comp_sharedness
import features
import wmppc
from comparing import references, trust
from comparing.clusters import clusters
from comparing.halves import Side
from comparing.heldout import matched
from comparing.influence import held_out
from comparing.passes import Held, evidence
from comparing.results import harmonic_mean

PAIR = ["--source", "A", "--target", "B"]
N_ROWS = 400


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(references, "_said", set())  # a note is said once a process


def codes(seed, n_features=20, n_rows=N_ROWS):
    """Sparse codes in which feature j of every seed follows the same hidden event, in part."""
    hidden = np.random.default_rng(9).random((n_rows, 40)) < 0.15
    rng = np.random.default_rng(seed)
    events = hidden[:, rng.permutation(40)[:n_features]] & (rng.random((n_rows, n_features)) < 0.8)
    return (events * rng.exponential(size=events.shape)).astype(np.float32)


def two_runs():
    a, b = {"layer0": codes(1), "layer1": codes(2, 12)}, {"layer0": codes(3, 16), "layer1": codes(4, 15)}
    make_run("A", a)
    make_run("B", b, part_rows=150)
    return a, b


def in_memory(a, b, groups, least=10):
    """Both directions' scores by scope, from layers in memory."""
    sides = [
        [Side(scipy.sparse.csr_array(layer), groups.half, least) for layer in run.values()] for run in (a, b)
    ]
    found = evidence(Held(*sides), groups)
    return [
        {scope: trust.score(layers, groups) for scope, layers in direction.items()}
        for direction in (found.forward, found.backward)
    ]


def plain_groups():
    captions = [f"caption {row}" for row in range(N_ROWS)]
    return clusters([f"sample{row}.png" for row in range(N_ROWS)], halves=captions)


def close(one, other):
    """Whether two Scores' own statistics agree to 1e-7."""
    for name in ("value", "floor", "adjusted", "held_out", "interval", "discovered"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-7)
    np.testing.assert_allclose([*one.coverage.values()], [*other.coverage.values()], atol=1e-7)


def test_a_pairs_scores_are_those_of_the_statistics_in_memory():
    a, b = two_runs()
    for found, expected in zip(wmppc.main(PAIR), in_memory(a, b, plain_groups()), strict=True):
        for scope, score in expected.items():
            close(found.wmppc[scope], score)


def test_sqrt_compares_square_roots_throughout():
    a, b = two_runs()
    found = wmppc.main([*PAIR, "--transform", "sqrt"])[0]
    roots = [{name: np.sqrt(layer) for name, layer in run.items()} for run in (a, b)]
    close(found.wmppc["last_layer"], in_memory(*roots, plain_groups())[0]["last_layer"])


def test_json_and_csv_hold_everything():
    two_runs()
    forward, backward = wmppc.main([*PAIR, "--json", "a.json", "--csv", "a.csv"])
    document = json.loads(Path("a.json").read_text())
    keys = [
        "value",
        "floor",
        "adjusted",
        "held_out",
        "interval",
        "coverage",
        "discovered",
        "seed_reference",
        "control",
    ]
    for direction in document["directions"]:
        for scope in ("last_layer", "all_layers"):
            score = direction["scores"]["wmppc"][scope]
            assert list(score) == keys
            assert list(score["coverage"]) == ["0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
            assert score["seed_reference"] is score["control"] is None
    (means,) = document["harmonic_mean"]
    held = [d.wmppc["last_layer"].held_out for d in (forward, backward)]
    assert means["last_layer"] == pytest.approx(harmonic_mean(*held))
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    row = next(
        row for row in rows if (row["source"], row["metric"], row["source_layer"]) == ("A", "wmppc", "all")
    )
    score = forward.wmppc["all_layers"]
    assert [float(row[name]) for name in ("held_out", "low", "high", "coverage_0.3")] == [
        score.held_out,
        *score.interval,
        score.coverage["0.3"],
    ]


def test_no_trust_gives_the_bare_score_and_keeps_it_apart(capsys):
    two_runs()
    full = wmppc.main(PAIR)[0].wmppc["last_layer"]
    bare = wmppc.main([*PAIR, "--no-trust"])[0].wmppc["last_layer"]
    assert bare.value == pytest.approx(full.value, abs=1e-6)
    assert {name for name, value in bare._asdict().items() if value is not None} == {"value"}
    assert wmppc.main(PAIR)[0].wmppc["last_layer"] == full
    assert "held out" not in capsys.readouterr().out.split("no-trust")[-1].split("held out")[0]


def test_a_difference_of_equal_targets_is_none_and_of_others_is_that_of_the_scores(capsys):
    two_runs()
    make_run("C", {"layer1": codes(4, 15)})
    words = ["--source", "A", "--difference", "--json", "d.json"]
    found = wmppc.main([*words, "--target", "B", "C"])
    assert "minus A -> C   +0.000   95 % +0.000 to +0.000" in capsys.readouterr().out
    make_run("D", {"layer1": codes(4, 5)})
    found = wmppc.main([*words, "--target", "B", "D"])
    held = [direction.wmppc["last_layer"].held_out for direction in found]
    difference = json.loads(Path("d.json").read_text())["difference"]
    assert difference["value"] == pytest.approx(held[0] - held[1], abs=1e-7)
    assert difference["interval"][0] < difference["value"] < difference["interval"][1]


def test_folds_are_scores_of_disjoint_parts(capsys):
    a, b = two_runs()
    wmppc.main([*PAIR, "--folds", "2", "--min_active", "5", "--json", "f.json"])
    folds = json.loads(Path("f.json").read_text())["folds"]
    assert len(folds["forward"]) == len(folds["backward"]) == 2
    groups = clusters([f"sample{row}.png" for row in range(N_ROWS)])
    rows = np.flatnonzero((groups.key >> np.uint64(1)) % np.uint64(2) == 1)
    x, y = (Side(layers["layer1"][rows], groups.half[rows], 5) for layers in (a, b))
    alone = held_out(matched(x, y)[0], x.total, x.counted)
    assert folds["forward"][1] == pytest.approx(alone, abs=1e-7)
    whole = wmppc.main([*PAIR, "--min_active", "5"])[0].wmppc["last_layer"].held_out
    assert np.mean(folds["forward"]) == pytest.approx(whole, abs=0.08)
    assert "held out on 2 folds, A -> B" in capsys.readouterr().out


def test_captions_join_rows_where_a_run_is_of_text_and_a_file_joins_the_users():
    captions = [f"caption {row // 2}" for row in range(N_ROWS)]
    make_run("A", {"layer0": codes(1)}, captions=captions)
    make_run("B", {"layer0": codes(2)}, captions=captions)
    make_run("T", {"layer0": codes(3)}, captions=captions, modality="text")
    assert wmppc.main(PAIR)[0].drivers[3:] == (N_ROWS, 1)
    assert wmppc.main(["--source", "A", "--target", "T"])[0].drivers[3:] == (N_ROWS // 2, 2)
    Path("groups.tsv").write_text("".join(f"sample{row}\t{row // 4}\n" for row in range(N_ROWS)))
    assert wmppc.main([*PAIR, "--cluster", "groups.tsv"])[0].drivers[3:] == (N_ROWS // 4, 4)


# ------------------------------------------------------------------------------------ other seeds, controls

SAE = {"token": "cls", "activation": "topk", "sae": {"layer0": {"d_in": 8, "d_sae": 20, "k": 4}}}


def encoder(checkpoint="one", random_weights=None):
    return {"model": "M", "checkpoint": checkpoint, "modality": "image", "random_weights": random_weights}


def seeded(name, seed, data_seed, of, epochs=1, **words):
    training = {"seed": seed, "data_seed": data_seed, "epochs": epochs}
    make_run(name, {"layer0": of}, training=training, **SAE | words)


def test_another_seed_is_found_and_is_the_reference(capsys):
    make_run("A", {"layer0": codes(1)})
    seeded("B", 0, 0, codes(2), encoder=encoder())
    seeded("B1", 1, 0, codes(2) * (np.random.default_rng(5).random((N_ROWS, 20)) < 0.8), encoder=encoder())
    seeded("other", 1, 0, codes(3), encoder=encoder("two"))
    forward, backward = wmppc.main(PAIR)
    own = wmppc.main(["--source", "B", "--target", "B1"])[0].wmppc["last_layer"]
    score = forward.wmppc["last_layer"]
    assert score.seed_reference == pytest.approx(score.coverage["0.3"] / own.coverage["0.3"])
    assert backward.wmppc["last_layer"].seed_reference is None
    assert (forward.reference.run, forward.reference.same_order) == ("B1", True)
    assert "both saw the data in one order" in capsys.readouterr().out
    seeded("B2", 2, 2, codes(2), encoder=encoder())
    assert wmppc.main(PAIR)[0].reference[:2] == ("B2", False), "one of another order goes first"


def test_a_seed_of_other_samples_is_no_reference_and_is_named_where_it_is_all_there_is(capsys):
    make_run("A", {"layer0": codes(1)})
    seeded("B", 0, 0, codes(2), encoder=encoder())
    ids = [f"x{row}" for row in range(N_ROWS)]
    seeded("B1", 1, 1, codes(2), encoder=encoder(), ids=ids)
    seeded("other", 1, 1, codes(2), encoder=encoder("two"), ids=ids)
    seeded("longer", 1, 1, codes(2), 9, encoder=encoder(), ids=ids)
    assert wmppc.main(PAIR)[0].reference is None
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        "note: no seed reference of run 'B': of another seed, but of other samples or captions: 'B1'"
    )
    seeded("longer", 1, 1, codes(2), 9, encoder=encoder())
    assert wmppc.main(PAIR)[0].reference is None, "its SAE was trained otherwise"
    seeded("B2", 1, 1, codes(2), encoder=encoder())
    references._said.clear()
    assert wmppc.main(PAIR)[0].reference.run == "B2"
    assert capsys.readouterr().err == ""


def test_a_control_stands_in_the_row_and_one_of_another_checkpoint_does_not(capsys):
    make_run("A", {"layer0": codes(1)})
    seeded("B", 0, 0, codes(2), encoder=encoder())
    seeded("large", 0, 0, codes(6), encoder=encoder("two", random_weights=0))
    assert wmppc.main(PAIR)[0].wmppc["last_layer"].control is None
    said = capsys.readouterr().err
    assert (
        "no control of run 'B': random, but of another checkpoint, layer, token or size of SAE: 'large'"
        in said
    )
    seeded("random", 0, 0, codes(7, 20)[::-1].copy(), encoder=encoder(random_weights=0))
    control = wmppc.main(PAIR)[0].wmppc["last_layer"].control
    alone = wmppc.main(["--source", "A", "--target", "random"])[0].wmppc["last_layer"]
    assert control == ("random", alone.held_out, alone.coverage["0.3"], alone.discovered, "encoder")
    assert wmppc.main(["--source", "B", "--target", "A"])[0].wmppc["last_layer"].control.run == "random"


@pytest.mark.parametrize(
    "changed", [{"token": "first"}, {"activation": "relu"}, {"sae": {"layer0": {"k": 8}}}]
)
def test_a_control_that_recorded_something_else_is_none(changed):
    make_run("A", {"layer0": codes(1)})
    seeded("B", 0, 0, codes(2), encoder=encoder())
    seeded("random", 0, 0, codes(7), encoder=encoder(random_weights=0), **changed)
    assert wmppc.main(PAIR)[0].wmppc["last_layer"].control is None


def test_a_control_of_the_last_layer_alone_is_none_of_all_layers():
    make_run("A", {"layer0": codes(1)})
    training, words = {"seed": 0, "data_seed": 0}, {"token": "cls", "activation": "topk"}
    make_run("B", {"layer0": codes(3), "layer1": codes(2)}, training=training, encoder=encoder(), **words)
    random = {"encoder": encoder(random_weights=0), "training": training}
    make_run("random", {"layer1": codes(7)}, **random, **words)
    found = wmppc.main(PAIR)[0].wmppc
    assert (found["last_layer"].control.run, found["all_layers"].control) == ("random", None)


def test_a_run_of_a_random_dictionary_is_a_control_and_no_other_seed(capsys):
    make_run("A", {"layer0": codes(1)})
    seeded("B", 0, 0, codes(2), encoder=encoder())
    training = {"seed": 1, "data_seed": 1, "recipe": features.RANDOM_SAE}
    make_run("drawn", {"layer0": codes(7, 20)[::-1].copy()}, training=training, encoder=encoder(), **SAE)
    found = wmppc.main(PAIR)[0]
    assert found.reference is None
    assert found.wmppc["last_layer"].control[::4] == ("drawn", "sae")
    assert "control: drawn; a dictionary that was drawn at random" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ bad input


def complaint(capsys, words):
    with pytest.raises(SystemExit) as stop:
        wmppc.main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_few_clusters_and_rare_features_give_bare_scores_and_say_so(capsys):
    make_run("A", {"layer0": codes(1, n_rows=40)})
    make_run("B", {"layer0": codes(2, n_rows=40)})
    assert wmppc.main(PAIR)[0].wmppc["last_layer"].held_out is None
    assert "40 clusters of samples are too few for held-out scores, which take 50" in capsys.readouterr().err
    make_run("C", {"layer0": codes(1)})
    make_run("D", {"layer0": codes(2)})
    found = wmppc.main(["--source", "C", "--target", "D", "--min_active", "300"])[0].wmppc["last_layer"]
    assert (found.held_out, found.interval) == (None, None)
    assert found.value > found.floor
    assert "no feature of C is active on 300 samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--folds", "401"], "--folds 401: a part takes 50 of the 400 clusters of samples: give 2 to 8"),
        (["--strata", "source"], "--strata source: the samples have caption_words, caption, id, image"),
        (["--strata", "caption_words"], "caption_words has one value in all rows"),
        (["--strata", "id"], "--strata id has another value in each row"),
        (["--cluster", "some.tsv"], "--cluster some.tsv has no line for sample1"),
        (["--cluster", "more.tsv"], "--cluster more.tsv names unknown rows: sample400"),
        (["--cluster", "twice.tsv"], "--cluster twice.tsv, line 2: sample0 has a line already"),
        (["--cluster", "bad.tsv"], "bad.tsv, line 1: write a row's id, a tab, and its group"),
        (["--cluster", "none.tsv"], "none.tsv"),
        (["--difference"], "--difference takes one source and two targets, not 1 and 1"),
        (["--no-trust", "--folds", "2"], "--no-trust gives the bare score of x alone"),
        (["--no-trust", "--transform", "sqrt"], "--no-trust gives the bare score of x alone"),
        (["--no-trust", "--strata", "caption"], "--no-trust gives the bare score of x alone"),
        (["--folds", "2", "--min_active", "300"], "no feature of A is active on 300 samples"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(words, expected, capsys):
    two_runs()
    Path("some.tsv").write_text("sample0\ta\n")
    Path("more.tsv").write_text("".join(f"sample{row}\ta\n" for row in range(N_ROWS + 1)))
    Path("twice.tsv").write_text("sample0\ta\nsample0\tb\n")
    Path("bad.tsv").write_text("sample0 a\n")
    line = complaint(capsys, [*PAIR, *words])
    assert line.startswith("error: ")
    assert expected in line


def test_one_side_without_features_that_count_leaves_both_directions_bare(capsys):
    """What correlates with nothing that counts has not been shown to be absent: no held-out 0, and no status."""
    make_run("A", {"layer0": codes(1)})
    make_run("B", {"layer0": codes(2)})
    make_run("rare", {"layer0": codes(3) * (np.arange(N_ROWS) < 20)[:, None]})
    for found in wmppc.main(["--source", "A", "--target", "rare"]):
        score = found.wmppc["last_layer"]
        assert (score.held_out, score.interval, score.coverage, score.discovered) == (None,) * 4
        assert score.floor > 0
    words = ["--source", "A", "--difference", "--target", "B", "rare"]
    assert complaint(capsys, words).startswith("error: no feature of rare is active on 10 samples")
    words = ["--source", "A", "--min_group", "B", "--max_group", "rare"]
    assert comp_sharedness.main(words).status is None
    assert "no feature of rare is active on 10 samples: no statuses" in capsys.readouterr().err


def test_captions_that_are_all_alike_leave_pictures_their_halves():
    captions = ["a photo"] * N_ROWS
    for seed, names in enumerate(("AC", "BD")):
        make_run(names[0], {"layer0": codes(seed)}, captions=captions)
        make_run(names[1], {"layer0": codes(seed)})
    make_run("T", {"layer0": codes(3)}, captions=captions, modality="text")
    score, expected = (
        wmppc.main(words)[0].wmppc["last_layer"] for words in (PAIR, ["--source", "C", "--target", "D"])
    )
    assert (score.held_out, score.interval) == (expected.held_out, expected.interval)
    assert score.held_out > 0.1
    assert wmppc.main(["--source", "A", "--target", "T"])[0].wmppc["last_layer"].held_out is None


def test_sqrt_is_of_wmppc_and_said_once(capsys):
    """The line on nuisance does not take the root of roots."""
    two_runs()
    plain, rooted = (wmppc.main([*PAIR, *words])[0] for words in ([], ["--transform", "sqrt"]))
    assert rooted.nuisance.held_out_sqrt is None
    assert rooted.nuisance.held_out == pytest.approx(plain.nuisance.held_out_sqrt)
    said = capsys.readouterr().out
    assert said.count("held out is ") == said.count("in all scores here, of square roots: held out ") == 2


def test_one_cluster_of_all_rows_is_too_few(capsys):
    two_runs()
    Path("one.tsv").write_text("".join(f"sample{row}\ta\n" for row in range(N_ROWS)))
    assert wmppc.main([*PAIR, "--cluster", "one.tsv"])[0].wmppc["last_layer"].held_out is None
    assert "1 clusters of samples are too few" in capsys.readouterr().err
