"""--dry_run: sizes that come out as estimated, no folder, and an estimate for whatever a command may ask for."""

import math

import pytest
import small_world
from small_world import SmallEncoder, SmallPairs

import features
import train_text
from plumbing.errors import UserError
from training import estimate, experiment, flags, rehearsal
from training.plan import training_plan


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.rehearsal.FEWEST_SECONDS", 0.01)


def dry_run(encoder=None, pairs=None, layers=("all",), sae=None, **settings):
    """The estimate of `small_world.train` with the same arguments."""
    encoder, pairs = encoder or SmallEncoder(), pairs or SmallPairs(300)
    numbers = flags.asked_layers(layers and list(layers), sae)
    return experiment.dry_run(encoder, pairs, small_world.variants(**settings), numbers, sae=sae)


def sizes(run):
    return {layer: tuple(sae.values()) for layer, sae in run.manifest["sae"].items()}


def nbytes(runs, pattern):
    return sum(file.stat().st_size for run in runs for file in run.path.rglob(pattern) if file.is_file())


def test_the_disk_after_is_as_estimated_and_nothing_is_left_behind(train, monkeypatch):
    """All but the picture of the training curve, which `train` leaves out."""
    monkeypatch.setattr(features, "PART_ROWS", 1024)
    command = {"pairs": SmallPairs(2500), "top_k": [7, 8], "batch_size": 64}
    found = dry_run(**command)
    assert not features.ROOT.exists()
    runs = train(**command)
    assert found.disk.features == pytest.approx(nbytes(runs, "features-*.npz"), rel=0.02)
    in_layers = nbytes(runs, "cfg.json") + nbytes(runs, "sae_weights.safetensors")
    assert found.disk.saes == pytest.approx(in_layers, rel=0.05)
    without_pictures = found.disk.after - len(runs) * estimate.OTHER_FILES
    assert without_pictures == pytest.approx(nbytes(runs, "*"), rel=0.1)
    assert found.disk.token_cache == 2500 * (3 * 8 * 4 + 1)
    assert (found.rows, found.steps) == (2500, math.ceil(2375 / 64))
    assert found.tokens == 2375 * 3  # the padding does not train


@pytest.mark.parametrize(
    ("command", "numbers"),
    [
        ({"seeds": [0, 1], "top_k": [1, 2], "epochs": 2}, (2 * 18, 2 * 285 * 3)),
        ({"layers": None, "activation": "relu"}, (18, 285 * 3)),
        ({"recipe": features.RANDOM_SAE}, (0, 0)),
        ({"pairs": SmallPairs(1)}, (1, 3)),
    ],
)
def test_sizes_are_exact_for_whatever_a_command_asks(train, command, numbers):
    found, runs = dry_run(**command), train(**command)
    assert found.saes == {run.name: sizes(run) for run in runs}
    assert (found.steps, found.tokens) == numbers


def test_given_saes_are_recorded_with_and_not_trained(train):
    (run,) = train(layers=[1])
    found = dry_run(layers=None, sae=str(run.path), runname="again")
    assert found.saes == {"again": sizes(run)}
    assert (found.steps, found.tokens, found.disk.token_cache) == (0, 0, 0)
    assert [path.name for path in features.ROOT.iterdir() if path.is_dir()] == ["run"]


def test_where_several_tokens_are_recorded_none_are_cached_and_all_their_features_count(train):
    command = {"encoder": SmallEncoder(recorded=None), "layers": [-1]}
    found, runs = dry_run(**command), train(**command)
    assert found.disk.token_cache == 0
    assert found.disk.features == pytest.approx(nbytes(runs, "features-*.npz"), rel=0.3)


@pytest.mark.parametrize(
    ("caches", "workers", "training", "recording"),
    [  # a row takes 1 s to read, 2 to encode, 4 to step; 8 to judge, 16 to record, or 32 out of the cache, by each SAE
        (False, 0, 8 * 16 * 3 + 285 * 7, 300 * 3 + 3 * (15 * 8 + 300 * 16)),
        (True, 0, 8 * 16 * 3 + 285 * 7, 15 * 3 + 3 * (15 * 8 + 15 * 16 + 285 * 32)),
        (True, 2, 8 * 16 * 2.5 + 285 * 6.5, 15 * 2.5 + 3 * (15 * 8 + 15 * 16 + 285 * 32)),
    ],
)
def test_the_seconds_are_the_paces_times_the_rows(monkeypatch, caches, workers, training, recording):
    """300 rows of three layers, of which 15 are held out, in batches of 16, on two cores."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    work = small_world.settle()
    work.stream.workers = workers
    paces = rehearsal.Paces("cpu")
    for kind, each in {"read": 1, "encode": 2, "step": 4, "judge": 8, "features": 16, "cached": 32}.items():
        paces.seconds[kind], paces.rows[kind] = 10.0 * each, 10
    sizes = [{layer: rehearsal.Size(8, 24, 2) for layer in range(3)}]
    seen = rehearsal.Rehearsal(
        paces, rehearsal.Paces("cpu"), 3.0, sizes, [dict.fromkeys(range(3), 2.0)], 12, 8, caches
    )
    plan = training_plan(work.held_out, work.jobs[0].settings)
    assert estimate.training_seconds(work, plan, seen) == training
    assert estimate.recording_seconds(work, seen) == recording


def test_a_long_training_needs_room_for_its_checkpoints():
    work = small_world.settle(top_k=[2], layers=[0])
    short, long = (experiment.estimate(work, every).disk for every in (1e9, 1e-9))
    assert (short.checkpoint, long.checkpoint) == (0, 3 * 4 * (2 * 8 * 24 + 8 + 24))
    assert long.running >= long.token_cache + 2 * long.checkpoint


def test_a_command_that_would_be_refused_is_refused(train):
    train(layers=[1])
    with pytest.raises(UserError, match="run 'run' exists"):
        dry_run(layers=[1])


def test_the_script_prints_it_and_leaves_no_folder(capsys, monkeypatch):
    monkeypatch.setattr("data.open_pairs", lambda **flags: SmallPairs(64))
    monkeypatch.setattr("wrappedmodels.load", lambda *names, **flags: SmallEncoder())
    found = train_text.main(["--dry_run", "--layers", "-1", "-2", "--device", "cpu", "--runname", "a"])
    assert isinstance(found, estimate.Estimate)
    assert not features.ROOT.exists()
    printed = capsys.readouterr().out
    assert "64 rows; about 183 tokens to train on, in 2 steps" in printed
    assert "2 SAEs of d_in 8, d_sae 24, k 2: a/layer1 and 1 more" in printed
    assert printed.endswith("dry run: nothing was written\n")
