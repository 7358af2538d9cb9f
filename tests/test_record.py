"""Recording: what is written is the saved SAE's codes, in row order, each row encoded no more often than it must be."""

import errno
import os
import shutil
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import small_world
import torch
from small_world import SmallEncoder, SmallPairs

import features
import saelens
from plumbing.errors import UserError
from plumbing.processes import Team
from sae import TopKSAE
from training import experiment, plan, record, saves, scales
from training.activations import Stream
from training.unfinished import release_locks


def codes_by_hand(run, layer, encoder, pairs, activation="topk"):
    """The recorded token's code of every row, from the saved SAE's weights in numpy float64."""
    sae = saelens.load(run.path / f"layer{layer}")
    w_enc, b_enc, _, b_dec = (
        p.detach().double().numpy() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    )
    items = [encoder.preprocess(pairs.items(row, "text")[0]) for row in range(len(pairs))]
    x = encoder.activations(encoder.collate(items), [layer]).layers[layer][:, 1].double().numpy()
    pre = np.maximum((x - b_dec) @ w_enc + b_enc, 0)
    if activation == "relu":
        return pre
    kept = np.sort(pre, axis=1)[:, -sae.k][:, None]
    return np.where(pre >= kept, pre, 0)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_the_recorded_features_are_the_saved_saes_codes_in_row_order(train, monkeypatch, activation):
    monkeypatch.setattr(features, "PART_ROWS", 70)
    (run,) = train(activation=activation)
    assert run.layers == ["layer0", "layer1", "layer2"]
    assert len(list(run.blocks("layer1"))) == 5
    for layer in range(3):
        expected = codes_by_hand(run, layer, SmallEncoder(), SmallPairs(300), activation)
        found = run.load(f"layer{layer}").toarray()
        assert np.count_nonzero(found) > 300
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert run.manifest["activation"] == activation
    assert list(run.samples().ids) == [str(row) for row in range(300)]


def test_a_mean_of_several_tokens_records_the_mean_of_their_codes_not_the_code_of_their_mean(train):
    alone = [train(SmallEncoder(recorded=token), runname=f"token{token}")[0] for token in range(3)]
    (mean,) = train(SmallEncoder(recorded=None), runname="mean")
    expected = sum(run.load("layer2").toarray() for run in alone) / 3
    np.testing.assert_allclose(mean.load("layer2").toarray(), expected, atol=1e-6)


def test_several_captions_of_a_row_are_averaged(train):
    (one,) = train(pairs=SmallPairs(60), runname="one")
    twice = SmallPairs(60, captions=lambda row: [str(row)] * 2)
    (same,) = train(pairs=twice, runname="same", batch_size=16)
    assert same.n_samples == one.n_samples == 60
    rows = same.load("layer0")
    assert np.diff(rows.indptr).max() <= 2  # two equal captions have one code of k = 2
    mixed = SmallPairs(60, captions=lambda row: [str(row), str(row + 1000)])
    (both,) = train(pairs=mixed, runname="both")
    sae = saelens.load(both.path / "layer0")
    encoder = SmallEncoder()
    items = [encoder.preprocess(caption) for caption in ("7", "1007")]
    x = encoder.activations(encoder.collate(items), [0]).layers[0][:, 1]
    np.testing.assert_allclose(both.load("layer0").toarray()[7], sae.encode(x).mean(0).detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 300),
        ({"epochs": 3}, 3 * 285 + 15),
        ({"recorded": None}, 285 + 300),  # several tokens of a row are recorded
        ({"free": 0}, 285 + 300),  # no room on the disk
    ],
)
def test_no_row_is_encoded_more_often_than_it_must_be(train, monkeypatch, changes, expected):
    rows = []
    pairs = SmallPairs(300, captions=lambda row: rows.append(row) or [str(row)])
    recorded = changes.pop("recorded", 1)
    free = SimpleNamespace(free=changes.pop("free", 1 << 40))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    work = small_world.prepare(SmallEncoder(recorded=recorded), pairs, **changes)
    (run,) = experiment.carry_out(work, checkpoint_every=60.0, command=None)
    release_locks()
    assert len(rows) == 8 * 16 + expected  # the eight batches that tell the mean, and then
    assert set(rows) == set(range(300))
    (same,) = train(SmallEncoder(recorded=recorded), sae=str(run.path), runname="same")
    for layer in run.layers:
        np.testing.assert_allclose(run.load(layer).toarray(), same.load(layer).toarray(), atol=1e-5)


@pytest.mark.parametrize("fails", ["at once", "in the middle"])
def test_a_disk_that_gets_full_keeps_no_tokens_and_the_run_goes_on(train, monkeypatch, fails):
    monkeypatch.setattr(features, "PART_ROWS", 64)
    (calm,) = train(runname="calm")
    pwrite, written = os.pwrite, []

    def full(file, content, where):
        written.append(1)
        if len(written) < 101:
            return pwrite(file, content, where)
        if fails == "in the middle" and len(content) > 1:
            return pwrite(file, content[: len(content) // 2], where)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        (run,) = train()
    for layer in run.layers:
        np.testing.assert_allclose(run.load(layer).toarray(), calm.load(layer).toarray(), atol=1e-5)
    assert list(run.path.glob("unfinished*")) == []


def test_processes_with_an_sae_each_read_a_decoder_only_while_they_need_it(train, monkeypatch):
    (run,) = train()
    whole = saelens.load(run.path / "layer1")
    tokens = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(saves, "team", lambda: Team(1, 3))
    (saes,) = saves.load_all(small_world.settle())
    sae = saes[1]
    assert [len(one.W_dec) for one in saes.values()] == [0, 0, 0]
    assert torch.equal(sae.encode(tokens), whole.encode(tokens))
    with saves.decoder_of(sae, run.path / "layer1"):
        assert torch.equal(sae(tokens), whole(tokens))
    assert sae.W_dec.shape == (0, 8)
    monkeypatch.setattr(saves, "team", lambda: Team(1, 4))  # not an SAE for each: all have all of them
    (saes,) = saves.load_all(small_world.settle())
    with saves.decoder_of(saes[1], run.path / "nowhere"):
        assert torch.equal(saes[1](tokens), whole(tokens))
    assert len(saes[1].W_dec) == 24


def held_out_row(n_samples=300):
    return int(np.flatnonzero(plan.held_out_rows(n_samples, 0))[1])  # the first is in the self-test


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("token", [0, 1])
def test_recording_stops_before_the_file_of_what_is_not_finite_and_names_row_and_layer(
    train, monkeypatch, value, token
):
    """Token 1 is the recorded one; token 0 of a held-out row is one of those that the scores are of."""
    monkeypatch.setattr(features, "PART_ROWS", 20)
    row = held_out_row()
    encoder = SmallEncoder(broken_row=row, broken=(1, token, float(value)))
    for _ in range(2):  # the same command again resumes, and finds the row again
        with pytest.raises(
            UserError, match=rf"layer 1 gives NaN or infinite activations for row {row} \({row}\)"
        ):
            train(encoder)
        written = [len(list(features.run_path("run").glob(f"layer{n}/features-*.npz"))) for n in range(3)]
        assert written == [row // 20] * 3
    assert features.run_names() == []


def test_given_saes_record_no_row_that_is_not_finite(train):
    """Nothing has looked at the row before: it is not trained on."""
    (trained,) = train(runname="trained")
    with pytest.raises(UserError, match="layer 2 gives NaN or infinite activations for row 77"):
        train(SmallEncoder(broken_row=77, broken=(2, 1, float("inf"))), runname="new", sae=str(trained.path))


def test_cached_tokens_that_are_not_finite_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = {0: torch.zeros(3, 8), 1: torch.zeros(3, 8)}
    tokens[1][2, 5] = float("nan")
    with pytest.raises(UserError, match="layer 1 gives NaN or infinite activations for row 200"):
        record.record_cached(small_world.prepare(), tokens, [7, 150, 200], [{}], [])


@pytest.mark.parametrize(
    ("where", "name", "most"),
    [(SmallEncoder, "activations", 20), (TopKSAE, "pre_acts", 20), (TopKSAE, "decode", 4)],
)
def test_recording_halves_its_batches_where_the_gpu_is_too_small(train, monkeypatch, where, name, most):
    """Encoding the batches, coding their tokens, scoring those of held-out samples."""
    monkeypatch.setattr(features, "PART_ROWS", 70)
    (calm,) = train(SmallEncoder(recorded=None), runname="calm")  # several tokens: every row is encoded
    compute, sizes = getattr(where, name), []

    def limited(self, items, *others):
        sizes.append(len(items["parts"]) if isinstance(items, dict) else len(items))
        if sizes[-1] > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return compute(self, items, *others)

    monkeypatch.setattr(where, name, limited)
    (run,) = train(SmallEncoder(recorded=None))
    assert max(sizes) > most
    for layer in run.layers:
        np.testing.assert_allclose(run.load(layer).toarray(), calm.load(layer).toarray(), atol=1e-5)
    for field in ("fvu", "fvu_recorded", "l0", "dead_fraction"):
        assert run.manifest[field] == pytest.approx(calm.manifest[field], rel=1e-6)


def test_a_batch_is_gone_before_the_next_one_is_encoded(train):
    """All layers of an L-sized encoder are a gigabyte a batch."""
    tokens, alive = [], []

    class Watching(SmallEncoder):
        def activations(self, batch, layers):
            alive.append(sum(one() is not None for one in tokens))
            found = super().activations(batch, layers)
            tokens.extend(map(weakref.ref, found.layers.values()))
            return found

    encoder = Watching(recorded=None)  # several tokens: every row is encoded again to be recorded
    work = small_world.prepare(encoder)
    experiment.carry_out(work, checkpoint_every=60.0, command=None)
    release_locks()
    n_steps = len(plan.training_plan(work.held_out, work.jobs[0].settings))
    after_the_scales = alive[scales.STATISTICS_BATCHES :]
    assert len(after_the_scales) == n_steps + 5 > 20
    assert not any(after_the_scales)


def test_a_sample_that_does_not_fit_alone_ends_in_one_line(capsys):
    encoder = SmallEncoder()

    def too_large(batch, layers):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    encoder.activations = too_large
    with pytest.raises(UserError, match="out of memory with one sample: make room"):
        list(record.encode_all(Stream(encoder, SmallPairs(6), [0]), [[0, 1, 2, 3], [4, 5]]))
    said = [line for line in capsys.readouterr().err.splitlines() if "going on with" in line]
    assert [line.split("going on with ")[1] for line in said] == ["2 samples at once", "1 samples at once"]
