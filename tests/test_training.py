"""Fitting and recording: what is recorded is what the saved SAE says, in row order, the same every time."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_world
import torch
from children import content
from small_world import SmallEncoder, SmallPairs

import features
from encoders import self_test
from plumbing import files, processes
from plumbing.errors import UserError
from sae import TopKSAE
from training import experiment, fit, flags, given, manifest, plan, quality, resume, token_cache, trainer
from training.activations import Stream
from training.settings import Settings
from training.work import Work


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train on the small world in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return small_world.train


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
    assert manifest["training"]["seed"] == manifest["training"]["data_seed"] == 0
    assert manifest["command"] == ["train_text.py"]
    assert manifest["device"] == "cpu"
    assert manifest["training"]["batch_size"] == 16
    assert manifest["held_out"] is True
    assert manifest["evaluated_samples"] == 15
    assert 0 < manifest["fvu"]["layer0"] < 1
    assert 0 < manifest["l0"]["layer0"] <= 2
    assert set(manifest["versions"]) >= {"python", "torch", "transformers", "open_clip_torch"}


def test_the_manifests_fvu_is_that_of_the_held_out_tokens(train):
    (run,) = train()
    held_out = plan.held_out_rows(300, data_seed=0)
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
    step = trainer.LayerTrainer.step

    def spy(self, z):
        seen.append(len(z))
        return step(self, z)

    monkeypatch.setattr(trainer.LayerTrainer, "step", spy)
    rows = []
    pairs = SmallPairs(100, captions=lambda row: rows.append(row) or [str(row)])
    monkeypatch.setattr(self_test, "self_test_on", lambda *arguments: None)  # it reads rows too
    monkeypatch.setattr(experiment, "record", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(pairs=pairs, layers=[0])
    assert set(rows) == set(np.flatnonzero(~plan.held_out_rows(100, 0)))
    assert sum(seen) == 95 * 3  # four tokens, one of them padding


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
    monkeypatch.setattr(self_test, "self_test_on", lambda *arguments: None)  # it reads rows too
    recorded = changes.pop("recorded", 1)
    free = SimpleNamespace(free=changes.pop("free", 1 << 40))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    (run,) = train(SmallEncoder(recorded=recorded), pairs, **changes)
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


def test_one_stream_trains_several_seeds_and_ks(train):
    runs = train(seeds=[0, 1], top_k=[1, 2], layers=[-1])
    assert [run.name for run in runs] == ["run_k1_seed0", "run_k2_seed0", "run_k1_seed1", "run_k2_seed1"]
    assert [run.manifest["sae"]["layer2"]["k"] for run in runs] == [1, 2, 1, 2]
    (alone,) = train(runname="alone", layers=[-1])
    for name in ("sae_weights.safetensors", "features-00000.npz"):
        together = (runs[1].path / "layer2" / name).read_bytes()
        assert together == (alone.path / "layer2" / name).read_bytes()


def test_a_second_seed_is_given_alone_by_its_seed_and_the_first_ones_data_seed(train):
    """The runs of one command share the order of the data and the held-out samples; `data_seed` says which."""
    _, second = train(seeds=[0, 1], runname="both", layers=[0])
    (alone,) = train(seeds=[1], data_seed=0, runname="alone", layers=[0])
    assert content(second.path) == content(alone.path)
    assert second.manifest["training"] == alone.manifest["training"]
    assert (alone.manifest["training"]["seed"], alone.manifest["training"]["data_seed"]) == (1, 0)
    (other,) = train(seeds=[1], runname="other", layers=[0])
    assert other.manifest["training"]["data_seed"] == 1
    assert content(other.path) != content(alone.path)


@pytest.mark.parametrize(
    ("typed", "resolved"), [(None, [2]), (["all"], [0, 1, 2]), ([-1], [2]), ([-3, 1], [0, 1])]
)
def test_the_last_layer_is_the_default_and_numbers_are_stored_resolved(train, typed, resolved):
    (run,) = train(pairs=SmallPairs(40), layers=typed)
    assert run.layers == [f"layer{layer}" for layer in resolved]
    assert run.manifest["training"]["layers"] == resolved
    for layer in resolved:
        config = json.loads((run.path / f"layer{layer}" / "cfg.json").read_text())
        assert config["metadata"]["hook_name"] == f"Small.layer{layer}"


def test_fewer_than_twenty_samples_are_all_trained_on_and_said_so(train):
    (run,) = train(pairs=SmallPairs(5))
    assert run.manifest["held_out"] is False
    assert run.manifest["evaluated_samples"] == 5
    assert "which it was trained on too" in manifest.table(run)


def test_one_sample_is_enough(train):
    (run,) = train(pairs=SmallPairs(1), batch_size=64)
    assert run.load("layer0").shape == (1, 24)


def test_activations_that_are_not_finite_stop_the_run_and_name_the_layer(train):
    with pytest.raises(UserError, match="layer 0 .*NaN or infinite"):
        train(SmallEncoder(broken_row=3), pairs=SmallPairs(19))
    assert features.run_names() == []


def held_out_row(n_samples=300):
    return int(np.flatnonzero(plan.held_out_rows(n_samples, 0))[1])  # the first is in the self-test


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("token", [0, 1])
def test_recording_stops_at_what_is_not_finite_and_names_row_and_layer(train, value, token):
    """Token 1 is the recorded one; token 0 of a held-out row is one of those that the scores are of."""
    row = held_out_row()
    encoder = SmallEncoder(broken_row=row, broken=(1, token, float(value)))
    with pytest.raises(
        UserError, match=rf"layer 1 gives NaN or infinite activations for row {row} \({row}\)"
    ):
        train(encoder)
    assert features.run_names() == []


def test_given_saes_record_no_row_that_is_not_finite(train):
    """Nothing has looked at the row before: it is not trained on."""
    (trained,) = train(runname="trained")
    with pytest.raises(UserError, match="layer 2 gives NaN or infinite activations for row 77"):
        train(SmallEncoder(broken_row=77, broken=(2, 1, float("inf"))), runname="new", sae=str(trained.path))


def test_kept_tokens_that_are_not_finite_are_named(train, monkeypatch):
    read = token_cache.RecordedTokens.read

    def damaged(self, rows):
        tokens = read(self, rows)
        tokens[1][rows.index(200)] = float("nan")
        return tokens

    assert not plan.held_out_rows(300, 0)[200]
    monkeypatch.setattr(token_cache.RecordedTokens, "read", damaged)
    with pytest.raises(UserError, match="layer 1 gives NaN or infinite activations for row 200"):
        train()


@pytest.mark.parametrize("step", [26, 40, 54])
def test_a_checkpoint_is_never_written_with_nan_in_it(train, monkeypatch, step):
    """The bad row is met between two reports; once it is repaired, the command ends as if nothing had been."""
    settings, pairs = {"layers": [0], "checkpoint_every": 1e-9}, SmallPairs(900)
    (calm,) = train(pairs=pairs, runname="calm", **settings)
    held_out = plan.held_out_rows(900, 0)
    settled = {field.name: calm.manifest["training"][field.name] for field in dataclasses.fields(Settings)}
    row = plan.training_plan(held_out, Settings(**settled))[step - 1][0]
    written, write = [], files.write_state

    def finite(file, header, tensors):
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        written.append(header["done"])
        write(file, header, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_state", finite)
        patch.setattr(resume.Clock, "is_due", lambda self: True)
        with pytest.raises(UserError, match=rf"layer 0 has NaN .* within batches \d+ to {step}:"):
            train(SmallEncoder(broken_row=row), pairs, **settings)
    assert written == list(range(1, step))
    (run,) = train(pairs=pairs, **settings)
    assert content(run.path) == content(calm.path)


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(train, monkeypatch):
    """The last loss is of the weights before the last step."""
    step = trainer.LayerTrainer.step

    def diverging(self, z):
        step(self, z)
        if self.steps_done == self.n_steps:
            self.sae.b_enc.data[3] = float("inf")

    monkeypatch.setattr(trainer.LayerTrainer, "step", diverging)
    with pytest.raises(UserError, match="its loss diverged"):
        train()
    assert not list(features.run_path("run").rglob("sae_weights.safetensors"))


class SinkEncoder(SmallEncoder):
    """Its first token, which is not recorded, is 130 times larger, and there are `others` times more of the others."""

    def __init__(self, larger=130.0, others=1):
        super().__init__()
        self.larger, self.others = larger, others

    def activations(self, batch, layers):
        found = super().activations(batch, layers)
        for tokens in found.layers.values():
            tokens[:, 0] *= self.larger
        repeat = lambda part: torch.cat([part, *[part[:, 1:]] * (self.others - 1)], 1)  # noqa: E731
        tokens = {layer: repeat(part) for layer, part in found.layers.items()}
        return found._replace(layers=tokens, mask=repeat(found.mask))


def test_the_fvu_of_the_recorded_token_is_told_beside_that_of_all_tokens(train):
    (run,) = train(SinkEncoder(others=6), epochs=3, layers=[2])
    encoder, sae = SinkEncoder(others=6), TopKSAE.load(run.path / "layer2")
    rows = np.flatnonzero(plan.held_out_rows(300, 0))
    found = encoder.activations(encoder.collate([encoder.preprocess(str(row)) for row in rows]), [2])
    all_tokens, recorded = found.layers[2][found.mask], found.layers[2][:, 1]
    for tokens, field in ((all_tokens, "fvu"), (recorded, "fvu_recorded")):
        x, y = tokens.double(), sae(tokens).detach().double()
        expected = float((x - y).square().sum() / (x - x.mean(0)).square().sum())
        assert run.manifest[field]["layer2"] == pytest.approx(expected, rel=1e-4)
    assert run.manifest["fvu"]["layer2"] < 0.1 < run.manifest["fvu_recorded"]["layer2"]
    share = run.manifest["half_variance_tokens"]["layer2"]
    assert share == pytest.approx(0.5 / 13, rel=0.2)  # one token of 13 holds all but a thousandth
    assert f"layer2: {share:.2%} of the tokens hold half of the variance" in manifest.table(run)


def test_tokens_that_are_alike_in_size_are_not_warned_of(train):
    (run,) = train(layers=[2])
    assert quality.FEW < run.manifest["half_variance_tokens"]["layer2"] <= 0.5
    assert "hold half" not in manifest.table(run)


def test_the_l0_of_a_relu_run_is_that_of_the_codes_that_it_records(train):
    """The fractions too; FVU stays that of the SAE, which is a TopK one."""
    topk, relu = (train(activation=activation, runname=activation)[0] for activation in ("topk", "relu"))
    held_out = plan.held_out_rows(300, 0)
    sae, encoder = TopKSAE.load(relu.path / "layer1"), SmallEncoder()
    items = encoder.collate([encoder.preprocess(str(row)) for row in np.flatnonzero(held_out)])
    active = (sae.pre_acts(encoder.activations(items, [1]).layers[1][:, :3].flatten(0, 1)) > 0).double()
    assert relu.manifest["l0"]["layer1"] == pytest.approx(float(active.sum(1).mean()))
    assert relu.manifest["l0"]["layer1"] > 2 >= topk.manifest["l0"]["layer1"]
    assert relu.manifest["dead_fraction"]["layer1"] == pytest.approx(
        float((active.sum(0) == 0).double().mean())
    )
    dense = float((active.mean(0) > 0.1).double().mean())
    assert relu.manifest["dense_fraction"]["layer1"] == pytest.approx(dense)
    assert relu.manifest["fvu"] == topk.manifest["fvu"]


def test_an_encoder_that_fails_its_self_test_leaves_no_folder(train):
    """Its tokens are the same whatever the caption."""
    alike = SmallEncoder()
    alike.activations = lambda batch, layers: SmallEncoder.activations(
        alike, {"parts": torch.ones_like(batch["parts"])}, layers
    )
    with pytest.raises(
        UserError, match="fails its self-test: two different items have the same recorded token"
    ):
        train(alike, pairs=SmallPairs(19))
    assert not features.ROOT.exists()


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
        ("ClipVision", None, None, "my birds [2]", "clipvision_my-birds-2"),
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
    assert flags.default_name(model, checkpoint, random_weights, dataset) == expected
    assert features.run_path(expected).name == expected


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
    rewrite_config(tmp_path / "mine", metadata={})
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


def rewrite_config(folder, **changes):
    """Change some values of an SAE's cfg.json."""
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"top1_layer2": None}, [2]),
        ({"k16-block0": None, "sae_layer.1": None}, [0, 1]),
        ({"blocks.1.hook_resid_post": None}, [1]),
        ({"a": "blocks.2.hook_resid_post", "b7": "visual.transformer.resblocks.0"}, [0, 2]),
        ({"top1_layer2": "encoder.layer.1"}, "top1_layer2 could be of layer 1 or 2"),
        ({"run2": None}, "neither many/run2's name nor its cfg.json states its layer"),
        ({"top1_layer2": None, "top2_layer2": None}, "top1_layer2 and many/top2_layer2 are both of layer 2"),
        ({"layer3": None}, "layer 3"),
    ],
)
def test_an_saes_layer_is_the_one_its_hook_or_its_folder_names(train, monkeypatch, folders, expected):
    monkeypatch.setattr(
        SmallEncoder, "resolve_layers", lambda _, layers: wrappedmodels_refusal(layers) or sorted(layers)
    )
    for name, hook in folders.items():
        TopKSAE(8, 24, 2).save(f"many/{name}", {"hook_name": hook} if hook else {})
    found = lambda: sorted(given.find_saes(Path("many"), SmallEncoder(), None))  # noqa: E731
    if isinstance(expected, list):
        assert found() == expected
    else:
        with pytest.raises(UserError, match=expected):
            found()


def wrappedmodels_refusal(layers):
    """What an encoder of three blocks says of a fourth."""
    if max(layers) > 2:
        raise UserError(f"layer {max(layers)} does not exist")


@pytest.mark.parametrize("flag", [[1], ["all"]])
def test_a_layer_that_is_typed_may_not_contradict_the_saes(train, flag):
    train(runname="trained", layers=[2])
    if flag == ["all"]:
        (run,) = train(runname="new", sae="sae_features/trained", layers=flag)
        assert run.layers == ["layer2"]
    else:
        with pytest.raises(UserError, match=r"SAEs of layers \[2\], not of \[1\]"):
            train(runname="new", sae="sae_features/trained/layer2", layers=flag)


def test_an_sae_of_another_width_is_refused(train):
    (trained,) = train(runname="trained")
    with pytest.raises(UserError, match="width 8, and layer 0 of none has 4"):
        train(SmallEncoder(d_in=4), runname="new", sae=str(trained.path))


# ------------------------------------------------------------------------------------- GPUs and processes


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


def test_a_sample_that_does_not_fit_alone_ends_in_one_line(train, monkeypatch):
    encoder = SmallEncoder(recorded=None)
    forward, full = encoder.activations, []

    def too_large(batch, layers):
        if full:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(batch, layers)

    encoder.activations = too_large
    monkeypatch.setattr(fit, "save_saes", lambda *args, save=fit.save_saes: full.append(1) or save(*args))
    with pytest.raises(UserError, match="out of memory with one sample: make room"):
        train(encoder)


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


def test_the_gpu_that_is_told_of_is_the_one_that_was_used(train, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: {"cuda:1": 77}[device])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: {"cuda:1": "the second"}[device])
    encoder = SmallEncoder()
    encoder.device = "cuda:1"
    work = Work(Stream(encoder, SmallPairs(5), [0]), [], np.zeros(5, bool), None, 0.0)
    found = manifest.costs(work)
    assert (found["peak_gpu_memory"], found["hardware"], found["device"]) == (77, "the second", "cuda:1")


def test_tf32_is_for_the_products_of_a_run_and_not_for_the_process(train, monkeypatch):
    monkeypatch.setattr(self_test, "self_test_on", lambda *arguments: None)  # in full precision
    seen = []

    class Looking(SmallEncoder):
        def activations(self, *args):
            seen.append(torch.get_float32_matmul_precision())
            return super().activations(*args)

    for before in ("highest", "high"):
        torch.set_float32_matmul_precision(before)
        try:
            train(Looking(), pairs=SmallPairs(30), runname=before)
            assert torch.get_float32_matmul_precision() == before
        finally:
            torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"high"}


def test_fewer_samples_than_processes_are_refused(train, monkeypatch):
    monkeypatch.setattr(experiment, "team", lambda: processes.Team(0, 8))
    with pytest.raises(
        UserError, match="6 training samples cannot be shared by 8 processes: start at most 6"
    ):
        train(pairs=SmallPairs(6))
    assert not list(features.ROOT.glob("*"))


def test_a_gpu_out_of_memory_says_which_flag_to_lower(train, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.LayerTrainer, "step", full)
    with pytest.raises(UserError, match=r"lower --batch_size \(now 16\)"):
        train()
