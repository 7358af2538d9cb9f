"""torchrun: two processes train and record what one does with batches of twice the size, each on its own GPU."""

import json
import socket

import numpy as np
import pytest
import torch
from children import finish, start

import features
import saelens
from plumbing import processes
from plumbing.errors import UserError

COMMAND = {"epochs": 6, "part_rows": 50, "n_samples": 320}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same command in one process and in two."""
    here = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [start(here, {**COMMAND, "runname": "one", "batch_size": 32})]
    for rank in ("0", "1"):
        environment = {**group, "RANK": rank, "LOCAL_RANK": rank}
        children.append(
            start(here, {**COMMAND, "runname": "two", "batch_size": 16, "environment": environment})
        )
    for child in children:
        finish(child)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        yield features.open_run("one"), features.open_run("two")


def test_two_processes_train_the_saes_of_one(runs):
    one, two = runs
    assert two.manifest["processes"] == 2
    for layer in one.layers:
        for a, b in zip(
            saelens.load(one.path / layer).parameters(),
            saelens.load(two.path / layer).parameters(),
            strict=True,
        ):
            np.testing.assert_allclose(b.detach(), a.detach(), atol=1e-5 * float(a.abs().max()) + 1e-6)


def test_two_processes_record_all_rows_in_order(runs):
    one, two = runs
    for layer in one.layers:
        a, b = one.load(layer).toarray(), two.load(layer).toarray()
        assert a.shape == b.shape == (320, 24)
        agree = np.isclose(a, b, atol=1e-4).all(axis=1)
        assert agree.mean() > 0.99  # a tie may fall the other way


def test_two_processes_agree_on_the_scores(runs):
    one, two = (json.loads((run.path / "run.json").read_text()) for run in runs)
    for field in ("fvu", "l0", "dead_fraction"):
        for layer, value in one[field].items():
            assert two[field][layer] == pytest.approx(value, rel=1e-3, abs=1e-3)
    assert one["evaluated_samples"] == two["evaluated_samples"]


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
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, asked, count, rank, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in (("WORLD_SIZE", count), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    if expected == "cpu" or (expected.startswith("cuda:") and " " not in expected):
        assert processes.own_device(asked) == expected
    else:
        with pytest.raises(UserError, match=expected):
            processes.own_device(asked)
