"""Fitting and recording: what is recorded is what the saved SAE says, in row order, the same every time."""

import argparse
import errno
import json

import numpy as np
import pytest
import torch
from children import content
from small_world import SmallEncoder, SmallPairs, arguments

import activations
import data
import features
import names
import training
import wrappedmodels
from sae import TopKSAE
from training import UserError


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run training.run on the small world, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def train(encoder=None, pairs=None, **changes):
        monkeypatch.setattr(wrappedmodels, "load", lambda *args, **kwargs: encoder or SmallEncoder())
        monkeypatch.setattr(data, "from_arguments", lambda arguments: pairs or SmallPairs(300))
        return training.run(arguments(**changes))

    return train


def codes_by_hand(run, layer, encoder, pairs, activation="topk"):
    """The recorded token's code of every row, from the saved SAE's weights in numpy float64."""
    sae = TopKSAE.load(run.path / f"layer{layer}")
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
    assert [sample["id"] for sample in run.samples()] == [str(row) for row in range(300)]


def test_a_pool_of_several_tokens_records_the_mean_of_their_codes_not_the_code_of_their_mean(train):
    (first,) = train(SmallEncoder(pool=(1.0, 0.0, 0.0, 0.0)), runname="first")
    (second,) = train(SmallEncoder(pool=(0.0, 1.0, 0.0, 0.0)), runname="second")
    (mean,) = train(SmallEncoder(pool=(0.5, 0.5, 0.0, 0.0)), runname="mean")
    expected = (first.load("layer2") + second.load("layer2")).toarray() / 2
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
    sae = TopKSAE.load(both.path / "layer0")
    encoder = SmallEncoder()
    items = [encoder.preprocess(caption) for caption in ("7", "1007")]
    x = encoder.activations(encoder.collate(items), [0]).layers[0][:, 1]
    np.testing.assert_allclose(both.load("layer0").toarray()[7], sae.encode(x).mean(0).detach(), atol=1e-5)


def test_the_same_command_gives_the_same_run_folder_and_another_seed_another(train):
    (one,) = train(runname="one")
    (two,) = train(runname="two")
    assert content(one.path) == content(two.path)
    drop = ("seconds", "samples_per_second", "peak_memory")
    assert {k: v for k, v in one.manifest.items() if k not in drop} == {
        k: v for k, v in two.manifest.items() if k not in drop
    }
    (other,) = train(runname="other", seeds=[1])
    assert (
        content(other.path)["layer0/sae_weights.safetensors"]
        != content(one.path)["layer0/sae_weights.safetensors"]
    )


def test_the_manifest_says_what_was_done(train):
    (run,) = train()
    manifest = json.loads((run.path / "run.json").read_text())
    names = dict(model="Small", checkpoint="none", modality="text", blocks=None, random_weights=None)
    assert manifest["encoder"] == names
    assert manifest["dataset"]["fingerprint"] == SmallPairs(300).fingerprint
    assert manifest["sae"]["layer1"] == {"d_in": 8, "d_sae": 24, "k": 2}
    assert manifest["training"]["seed"] == 0
    assert manifest["training"]["batch_size"] == 16
    assert manifest["held_out"] is True
    assert manifest["evaluated_samples"] == 15
    assert 0 < manifest["fvu"]["layer0"] < 1
    assert 0 < manifest["l0"]["layer0"] <= 2
    assert set(manifest["versions"]) >= {"python", "torch", "transformers", "open_clip_torch"}


def test_the_manifests_fvu_is_that_of_the_held_out_tokens(train):
    (run,) = train()
    held_out = training.held_out_rows(300, seed=0)
    assert held_out.sum() == 15
    encoder, sae = SmallEncoder(), TopKSAE.load(run.path / "layer2")
    items = [encoder.preprocess(str(row)) for row in np.flatnonzero(held_out)]
    x = encoder.activations(encoder.collate(items), [2]).layers[2][:, :3].reshape(-1, 8)
    code = sae.encode(x).detach().double()
    residual = ((x.double() - (code @ sae.W_dec.detach().double() + sae.b_dec.detach().double())) ** 2).sum()
    variance = ((x.double() - x.double().mean(0)) ** 2).sum()
    assert run.manifest["fvu"]["layer2"] == pytest.approx(float(residual / variance), rel=1e-4)
    assert run.manifest["l0"]["layer2"] == pytest.approx(float((code > 0).sum(1).double().mean()))
    dead = float(((code > 0).sum(0) == 0).double().mean())
    assert run.manifest["dead_fraction"]["layer2"] == pytest.approx(dead)


def test_training_learns(train):
    (short,) = train(pairs=SmallPairs(300), runname="short", batch_size=128, layers=[0])
    (long,) = train(pairs=SmallPairs(300), runname="long", epochs=30, layers=[0])
    assert long.manifest["fvu"]["layer0"] < 0.5 * short.manifest["fvu"]["layer0"]
    decoder = TopKSAE.load(long.path / "layer0").W_dec
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(24))


def test_held_out_samples_and_padding_never_train(train, monkeypatch):
    seen = []
    step = training.LayerTrainer.step

    def spy(self, z):
        seen.append(len(z))
        return step(self, z)

    monkeypatch.setattr(training.LayerTrainer, "step", spy)
    rows = []
    pairs = SmallPairs(100, captions=lambda row: rows.append(row) or [str(row)])
    monkeypatch.setattr(training, "record", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(pairs=pairs, layers=[0])
    assert set(rows) == set(np.flatnonzero(~training.held_out_rows(100, 0)))
    assert sum(seen) == 95 * 3  # four tokens, one of them padding


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 300),
        ({"epochs": 3}, 3 * 285 + 15),
        ({"pool": (0.5, 0.5, 0.0, 0.0)}, 285 + 300),  # several tokens of a row are recorded
        ({"held": 16 * 4 * 8 * 4 * 3}, 300 + 7 * 16),  # one of the eight batches that tell the mean is held
        ({"free": 0}, 285 + 300),  # no room on the disk
    ],
)
def test_no_row_is_encoded_more_often_than_it_must_be(train, monkeypatch, changes, expected):
    rows = []
    pairs = SmallPairs(300, captions=lambda row: rows.append(row) or [str(row)])
    pool = changes.pop("pool", (0.0, 1.0, 0.0, 0.0))
    monkeypatch.setattr(training, "HELD_BYTES", changes.pop("held", 1 << 30))
    free = argparse.Namespace(free=changes.pop("free", 1 << 40))
    monkeypatch.setattr(training.shutil, "disk_usage", lambda _: free)
    (run,) = train(SmallEncoder(pool=pool), pairs, **changes)
    assert len(rows) == expected
    assert set(rows) == set(range(300))
    (same,) = train(SmallEncoder(pool=pool), sae=str(run.path), runname="same")
    for layer in run.layers:
        np.testing.assert_allclose(run.load(layer).toarray(), same.load(layer).toarray(), atol=1e-5)


@pytest.mark.parametrize("fails", ["at once", "in the middle"])
def test_a_disk_that_gets_full_keeps_no_tokens_and_the_run_goes_on(train, monkeypatch, fails):
    monkeypatch.setattr(features, "PART_ROWS", 64)
    (calm,) = train(runname="calm")
    pwrite, written = activations.os.pwrite, []

    def full(file, content, where):
        written.append(1)
        if len(written) < 101:
            return pwrite(file, content, where)
        if fails == "in the middle" and len(content) > 1:
            return pwrite(file, content[: len(content) // 2], where)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(activations.os, "pwrite", full)
        (run,) = train()
    for layer in run.layers:
        np.testing.assert_allclose(run.load(layer).toarray(), calm.load(layer).toarray(), atol=1e-5)
    assert list(run.path.glob("unfinished*")) == []


def test_one_stream_trains_several_seeds_and_ks(train):
    runs = train(seeds=[0, 1], top_k=[1, 2], layers=[-1])
    assert [run.name for run in runs] == ["run_k1_seed0", "run_k2_seed0", "run_k1_seed1", "run_k2_seed1"]
    assert [run.manifest["sae"]["layer2"]["k"] for run in runs] == [1, 2, 1, 2]
    (alone,) = train(runname="alone", layers=[-1])
    for name in ("sae_weights.safetensors", "features-00000.npz"):
        together = (runs[1].path / "layer2" / name).read_bytes()
        assert together == (alone.path / "layer2" / name).read_bytes()


def test_fewer_than_twenty_samples_are_all_trained_on_and_said_so(train, capsys):
    (run,) = train(pairs=SmallPairs(5))
    assert run.manifest["held_out"] is False
    assert run.manifest["evaluated_samples"] == 5
    assert "which it was trained on too" in capsys.readouterr().out


def test_one_sample_is_enough(train):
    (run,) = train(pairs=SmallPairs(1), batch_size=64)
    assert run.load("layer0").shape == (1, 24)


def test_activations_that_are_not_finite_stop_the_run_and_name_the_layer(train):
    with pytest.raises(UserError, match="layer 0 .*NaN or infinite"):
        train(SmallEncoder(broken_row=3), pairs=SmallPairs(19))
    assert features.run_names() == []


def test_k_above_d_sae_is_refused_in_one_line(train):
    with pytest.raises(UserError, match="25.*24"):
        train(top_k=[25])


def test_an_existing_run_is_refused_before_anything_is_computed(train):
    (run,) = train(pairs=SmallPairs(20))
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(UserError, match="run 'run' exists"):
        train(pairs=SmallPairs(20))
    assert (run.path / "run.json").read_bytes() == before
    train(pairs=SmallPairs(20), overwrite=True)


@pytest.mark.parametrize(
    ("model", "checkpoint", "random_weights", "dataset", "expected"),
    [
        ("DemoClipVision", None, None, "demo", "clipvision_demo"),
        ("DemoClipVision", None, None, "photos", "democlipvision_photos"),
        ("ClipVision", None, None, "coco", "clipvision_coco"),
        ("ClipVision", "ViT-B/32-quickgelu", None, "coco", "clipvision-vit-b-32-quickgelu_coco"),
        (
            "ClipText",
            "hf-hub:apple/DFN2B-CLIP-ViT-L-14",
            3,
            "coco",
            "cliptext-apple-dfn2b-clip-vit-l-14-random3_coco",
        ),
    ],
)
def test_the_default_name_is_made_of_encoder_and_data(model, checkpoint, random_weights, dataset, expected):
    chosen = argparse.Namespace(model=model, checkpoint=checkpoint, random_weights=random_weights)
    assert names.default_name(chosen, argparse.Namespace(name=dataset)) == expected


# ------------------------------------------------------------------------------- SAEs that are trained already


def test_saes_trained_before_record_the_same_features_again(train):
    (trained,) = train(runname="trained")
    (again,) = train(runname="again", sae=str(trained.path))
    for layer in trained.layers:
        for file in ("sae_weights.safetensors", "features-00000.npz"):
            assert (again.path / layer / file).read_bytes() == (trained.path / layer / file).read_bytes()
    assert again.manifest["training"]["sae"] == str(trained.path)
    assert again.manifest["fvu"] == pytest.approx(
        trained.manifest["fvu"], rel=1e-12
    )  # summed in other batches


def test_one_sae_is_taken_for_the_layer_that_its_folder_or_the_user_names(train, tmp_path):
    (trained,) = train(runname="trained")
    (one,) = train(runname="one", sae=str(trained.path / "layer1"))
    assert one.layers == ["layer1"]
    (trained.path / "layer1").rename(tmp_path / "mine")
    with pytest.raises(UserError, match="add --layers with one number"):
        train(runname="two", sae=str(tmp_path / "mine"))
    (two,) = train(runname="two", sae=str(tmp_path / "mine"), layers=[1])
    np.testing.assert_array_equal(two.load("layer1").toarray(), one.load("layer1").toarray())


@pytest.mark.parametrize(
    ("folder", "layers", "said"),
    [("nowhere", None, "holds no SAE"), ("sae_features/part", [0], r"layers \[1, 2\], not of \[0\]")],
)
def test_saes_that_are_not_there_are_named(train, folder, layers, said):
    train(runname="part", layers=[1, 2])
    with pytest.raises(UserError, match=said):
        train(runname="new", sae=folder, layers=layers)


def test_an_sae_of_another_width_is_refused(train):
    (trained,) = train(runname="trained")
    with pytest.raises(UserError, match="width 8, and layer 0 of none has 4"):
        train(SmallEncoder(d_in=4), runname="new", sae=str(trained.path))


def test_a_gpu_out_of_memory_says_which_flag_to_lower(train, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.LayerTrainer, "step", full)
    with pytest.raises(UserError, match=r"lower --batch_size \(now 16\)"):
        train()
