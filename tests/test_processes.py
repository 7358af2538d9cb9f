"""torchrun: several processes train and record what one does with batches as large as all of theirs together."""

import json

import numpy as np
import pytest
import torch
from children import finish, start, start_together

import features
import saelens
from plumbing import processes
from plumbing.errors import UserError
from training import division, plan
from training.division import divide

COMMAND = {
    "epochs": 6,
    "part_rows": 50,
    "n_samples": 320,
}  # the last batch of an epoch cannot be shared evenly

GROUPS = {  # run name: how many processes, and which layers
    "one": (1, [0, 1, 2]),
    "two": (2, [0, 1, 2]),
    "three": (3, [0, 1, 2]),
    "together": (2, [1]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same command in one process, in two and three that have SAEs of their own, and in two that share one SAE."""
    here, children = tmp_path_factory.mktemp("processes"), []
    for name, (world, layers) in GROUPS.items():
        command = {**COMMAND, "runname": name, "layers": layers, "batch_size": 48 // world}
        children += start_together([here] * world, command) if world > 1 else [start(here, command)]
    for child in children:
        finish(child)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        yield {name: features.open_run(name) for name in GROUPS}


several = pytest.mark.parametrize("name", ["two", "three", "together"])


@several
def test_several_processes_train_the_saes_of_one(runs, name):
    assert runs[name].manifest["processes"] == GROUPS[name][0]
    for layer in runs[name].layers:
        saes = (saelens.load(run.path / layer).state_dict().values() for run in (runs["one"], runs[name]))
        for a, b in zip(*saes, strict=True):
            if runs[name].manifest["shared_out"] == "saes":
                assert torch.equal(a, b)  # the owner has added up the same tokens in the same order
            else:
                np.testing.assert_allclose(b, a, atol=1e-5 * float(a.abs().max()) + 1e-6)


@several
def test_several_processes_record_all_rows_in_order(runs, name):
    for layer in runs[name].layers:
        a, b = runs["one"].load(layer).toarray(), runs[name].load(layer).toarray()
        assert a.shape == b.shape == (320, 24)
        if runs[name].manifest["shared_out"] == "saes":
            assert (a == b).all()
        agree = np.isclose(a, b, atol=1e-4).all(axis=1)
        assert agree.mean() > 0.99  # a tie may fall the other way


@several
def test_several_processes_agree_on_the_scores_and_the_curve(runs, name):
    one, other = (json.loads((runs[which].path / "run.json").read_text()) for which in ("one", name))
    near = 1e-9 if other["shared_out"] == "saes" else 1e-3  # the same SAEs, scored in sums of another order
    for field in ("fvu", "l0", "dead_fraction"):
        for layer, value in other[field].items():
            assert value == pytest.approx(one[field][layer], rel=near, abs=near)
    assert one["evaluated_samples"] == other["evaluated_samples"]
    lines = [(runs[which].path / "training.jsonl").read_text().splitlines() for which in ("one", name)]
    for a, b in zip(*([json.loads(line) for line in of] for of in lines), strict=True):
        assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
        for layer, loss in b["loss"].items():
            assert loss == pytest.approx(a["loss"][layer], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one", (None, 0, 3)),
        ("two", ("saes", 2 * 66 * 8 * 4, 2)),  # the first one sends two layers' tokens, 66 on average
        ("three", ("saes", 2 * 44 * 8 * 4, 1)),
        ("together", ("batches", (2 * 8 * 24 + 8 + 24 + 24 + 6) * 4, 1)),
    ],
)
def test_run_json_says_what_a_process_sends_and_holds(runs, name, expected):
    way, sent, n_saes = expected
    held = n_saes * (3 * (2 * 8 * 24 + 8 + 24) * 4 + 24 * 8)
    manifest = runs[name].manifest
    assert [manifest[f] for f in ("shared_out", "bytes_sent_per_step", "bytes_held")] == [way, sent, held]


def test_processes_that_see_different_folders_are_refused_in_one_line(tmp_path):
    places = [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
    children = start_together(places, {"runname": "run"})
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [2, 2]
    assert (
        (places[0] / "mistake")
        .read_text()
        .startswith(f"not all 2 processes see {places[0]}/sae_features of ")
    )
    assert not (places[1] / "mistake").exists()
    assert not [file for place in places for file in place.rglob("sae_features/*")]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_processes_shares_of_a_batch_follow_each_other_and_differ_by_one_row_at_most(monkeypatch, world):
    batches, shares = [list(range(48)), list(range(100, 117))], []
    for rank in range(world):
        monkeypatch.setattr(plan, "team", lambda rank=rank: processes.Team(rank, world))
        shares.append(plan.own_share(batches))
    for number, batch in enumerate(batches):
        assert [row for share in shares for row in share[number]] == batch
        sizes = [len(share[number]) for share in shares]
        assert max(sizes) - min(sizes) <= 1


B = (768, 6144)


@pytest.mark.parametrize(
    ("n_jobs", "n_layers", "world", "expected"),
    [
        (1, 12, 4, [3, 3, 3, 3]),
        (1, 12, 5, [2, 3, 2, 3, 2]),
        (2, 3, 3, [2, 2, 2]),
        (1, 2, 3, [1, 0, 1]),
    ],
)
def test_saes_are_dealt_out_evenly_and_a_layers_to_as_few_as_that_allows(n_jobs, n_layers, world, expected):
    saes = {(job, layer): B for job in range(n_jobs) for layer in range(n_layers)}
    owners = division.assign(saes, world)
    counts = [list(owners.values()).count(rank) for rank in range(world)]
    assert sorted(counts) == sorted(expected)
    if n_jobs == 2:
        assert all(owners[0, layer] == owners[1, layer] for layer in range(n_layers))


def test_wide_layers_weigh_more():
    saes = {(0, 0): (96, 768), (0, 1): (192, 1536), (0, 2): (384, 3072), (0, 3): (768, 6144)}
    assert division.assign(saes, 2) == {(0, 0): 0, (0, 1): 0, (0, 2): 0, (0, 3): 1}


def test_every_round_gives_each_process_a_layer_of_its_own_and_the_fullest_first():
    saes = {(job, layer): B for job in range(4) for layer in range(3)}
    found = division.each_its_own(saes, 2, 100.0)
    assert found.rounds(2) == [(0, 2), (1, 1)]
    trained = {(layer, rank) for layers in found.rounds(2) for rank, layer in enumerate(layers)}
    assert {(layer, owner) for (_, layer), owner in found.owners.items()} == trained


@pytest.mark.parametrize(
    ("n_saes", "world", "tokens", "own"),
    [
        (12, 8, 8 * 1600, True),
        (12, 8, 8 * 100_000, False),  # so many tokens weigh more than the gradients
        (8, 8, 8 * 1600, True),
        (7, 8, 8 * 1600, False),  # a process would be idle
        (1, 2, 2 * 1600, False),
        (1, 1, 1600, False),  # there is nobody to send anything to
    ],
)
def test_the_division_that_sends_less_is_taken_where_there_is_an_sae_for_each_process(
    n_saes, world, tokens, own
):
    found = divide({(0, layer): B for layer in range(n_saes)}, world, tokens)
    assert (found.owners is not None) is own


@pytest.mark.parametrize(
    ("asked", "count", "rank", "gpus", "expected"),
    [
        (None, 1, 0, 0, "cpu"),
        (None, 2, 1, 0, "cpu"),
        ("cpu", 2, 1, 2, "cpu"),
        (None, 1, 0, 2, "cuda:0"),
        ("cuda", 1, 0, 2, "cuda:0"),
        ("cuda:1", 1, 0, 2, "cuda:1"),
        (None, 2, 1, 2, "cuda:1"),
        ("cuda", 2, 1, 2, "cuda:1"),
        ("cuda:0", 2, 1, 2, "cuda:0 is one GPU for 2 processes: type --device cuda"),
        ("cuda", 3, 2, 2, "GPU 2 is asked for, of 2: start 2 processes"),
        ("cuda:5", 1, 0, 2, "GPU 5 is asked for, of 2: type cuda:0 to cuda:1"),
        ("cuda", 1, 0, 0, "no GPU can be used here; type --device cpu"),
        ("mps", 1, 0, 0, "--device mps: type cpu, cuda, or cuda:0"),
        (None, 2, 1, 1, "GPU 1 is asked for, of 1: start 1 process$"),
        ("cuda:1", 1, 0, 1, "GPU 1 is asked for, of 1: type cuda:0$"),
    ],
)
def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch, asked, count, rank, gpus, expected):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's own
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in (("WORLD_SIZE", count), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    if expected == "cpu" or (expected.startswith("cuda:") and " " not in expected):
        assert processes.own_device(asked) == expected
    else:
        with pytest.raises(UserError, match=expected):
            processes.own_device(asked)


@pytest.mark.parametrize("asked", [None, "cuda"])
def test_a_process_that_sees_its_own_gpu_alone_takes_it(monkeypatch, asked):
    """As srun shows it to each of its tasks."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    assert processes.own_device(asked) == "cuda:0"
