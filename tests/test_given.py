"""SAEs given with --sae: which layer each is of, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import SmallEncoder, SmallPairs
from test_saelens import code_of, publish

import saelens
from plumbing.errors import UserError
from sae import TopKSAE
from training import flags, given, plan


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
    saes = write_saes(tmp_path / "saes", [1])
    (one,) = train(runname="one", sae=str(saes / "layer1"))
    assert one.layers == ["layer1"]
    (saes / "layer1").rename(tmp_path / "mine")
    rewrite_config(tmp_path / "mine", metadata={})
    with pytest.raises(UserError, match="add --layers with one number"):
        train(runname="two", sae=str(tmp_path / "mine"))
    (two,) = train(runname="two", sae=str(tmp_path / "mine"), layers=[1])
    np.testing.assert_array_equal(two.load("layer1").toarray(), one.load("layer1").toarray())


def write_saes(folder, layers, d_in=8):
    """An SAE of each layer, as a run holds them."""
    for layer in layers:
        TopKSAE(d_in, 24, 2, seed=layer).save(folder / f"layer{layer}", {"hook_name": f"Small.layer{layer}"})
    return folder


@pytest.mark.parametrize(
    ("folder", "layers", "said"),
    [
        ("nowhere", None, "nowhere is no folder"),
        (".", None, "holds no SAE"),
        ("part", [0], r"layers \[1, 2\], not of \[0\]"),
    ],
)
def test_saes_that_are_not_there_are_named(train, tmp_path, folder, layers, said):
    write_saes(tmp_path / "part", [1, 2])
    with pytest.raises(UserError, match=said):
        train(runname="new", sae=folder, layers=layers)


def rewrite_config(folder, **changes):
    """Change some values of an SAE's cfg.json."""
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


class ThreeBlocks(SmallEncoder):
    """It refuses a fourth, as a real encoder does."""

    def resolve_layers(self, layers):
        if max(layers) > 2:
            raise UserError(f"layer {max(layers)} does not exist")
        return sorted(layers)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"top1_layer2": None}, [2]),
        ({"k16-block0": None, "sae_layer.1": None}, [0, 1]),
        ({"blocks.1.hook_resid_post": None}, [1]),
        ({"blocks.2.hook_resid_pre": "blocks.2.hook_resid_pre", "b": "blocks.1.hook_resid_pre"}, [0, 1]),
        ({"blocks.0.hook_resid_pre": None}, "what goes into the first block, which is no layer here"),
        ({"layer2": "blocks.2.hook_resid_pre"}, "layer2 could be of layer 1 or 2"),
        ({"a": "blocks.2.hook_mlp_out"}, "is of 'blocks.2.hook_mlp_out', which is inside a block"),
        ({"a": "blocks.2.attn.hook_z"}, "which is inside a block"),
        ({"a": "blocks.2.hook_resid_post", "b7": "visual.transformer.resblocks.0"}, [0, 2]),
        ({"top1_layer2": "encoder.layer.1"}, "top1_layer2 could be of layer 1 or 2"),
        ({"run2": None}, "neither many/run2's name nor its cfg.json states its layer"),
        ({"top1_layer2": None, "top2_layer2": None}, "top1_layer2 and many/top2_layer2 are both of layer 2"),
        ({"layer3": None}, "layer 3"),
    ],
)
def test_an_saes_layer_is_the_one_its_hook_or_its_folder_names(tmp_path, monkeypatch, folders, expected):
    monkeypatch.chdir(tmp_path)
    for name, hook in folders.items():
        TopKSAE(8, 24, 2).save(f"many/{name}", {"hook_name": hook} if hook else {})
    found = lambda: sorted(given.find_saes(Path("many"), ThreeBlocks(), None))  # noqa: E731
    if isinstance(expected, list):
        assert found() == expected
    else:
        with pytest.raises(UserError, match=expected):
            found()


@pytest.mark.parametrize("flag", [[1], ["all"]])
def test_a_layer_that_is_typed_may_not_contradict_the_saes(tmp_path, flag):
    saes, layers = write_saes(tmp_path, [2]), flags.asked_layers(flag, "saes")
    if flag == ["all"]:
        assert given.find_saes(saes, SmallEncoder(), layers) == {2: saes / "layer2"}
    else:
        with pytest.raises(UserError, match=r"SAEs of layers \[2\], not of \[1\]"):
            given.find_saes(saes / "layer2", SmallEncoder(), layers)


def test_an_sae_of_another_width_is_refused(train, tmp_path):
    saes = write_saes(tmp_path / "saes", [0])
    with pytest.raises(UserError, match="width 8, and layer 0 of none has 4"):
        train(SmallEncoder(d_in=4), runname="new", sae=str(saes))


@pytest.mark.parametrize(
    ("architecture", "activation"), [("jumprelu", "jumprelu"), ("standard", "standard"), ("jumprelu", "relu")]
)
def test_published_saes_are_recorded_by_their_own_codes(train, tmp_path, architecture, activation):
    publish(
        tmp_path / "theirs", {"architecture": architecture, "hook_name": "blocks.1.hook_resid_post"}, d_in=8
    )
    asked = "relu" if activation == "relu" else "topk"
    (run,) = train(runname="new", sae="theirs", activation=asked)
    assert run.manifest["activation"] == activation
    assert run.manifest["sae"] == {"layer1": {"d_in": 8, "d_sae": 40, "architecture": architecture}}
    encoder, sae = SmallEncoder(), saelens.load("theirs")
    tokens = torch.cat(
        [tokens_of(encoder, row) for row in range(300)]
    ).double()  # 300 rows of three real tokens
    code = sae.double().encode(tokens)
    recorded = sae.pre_acts(tokens).relu() if activation == "relu" else code
    np.testing.assert_allclose(run.load("layer1").toarray(), recorded[1::3], rtol=1e-4, atol=1e-4)
    judged = plan.held_out_rows(300, 0).repeat(3)
    tokens, error = tokens[judged], (tokens - sae.decode(code))[judged]
    fvu = error.square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert run.manifest["fvu"]["layer1"] == pytest.approx(float(fvu), rel=1e-4)
    fired = recorded[judged] > 0
    assert run.manifest["l0"]["layer1"] == pytest.approx(float(fired.sum(1).double().mean()), abs=0.01)
    assert run.manifest["dead_fraction"]["layer1"] == pytest.approx(
        float((fired.sum(0) == 0).double().mean())
    )


def test_the_fvu_of_an_sae_of_layer_normed_tokens_is_of_the_tokens_as_they_were(train, tmp_path):
    config = {"architecture": "topk", "k": 5, "hook_layer": 1, "normalize_activations": "layer_norm"}
    weights = publish(tmp_path / "theirs", config, d_in=8)
    (run,) = train(runname="new", sae="theirs")
    encoder = SmallEncoder()
    tokens = torch.cat([tokens_of(encoder, row) for row in range(300)]).double()
    code, reconstruction = code_of(config, weights, tokens)
    np.testing.assert_allclose(run.load("layer1").toarray(), code[1::3], rtol=1e-4, atol=1e-4)
    judged = plan.held_out_rows(300, 0).repeat(3)
    tokens, error = tokens[judged], (tokens - reconstruction)[judged]
    fvu = error.square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert run.manifest["fvu"]["layer1"] == pytest.approx(float(fvu), rel=1e-4)


def tokens_of(encoder, row):
    """The three real tokens of layer 1 of a row."""
    found = encoder.activations(encoder.collate([encoder.preprocess(str(row))]), [1])
    return found.layers[1][found.mask]


def test_inputs_of_a_fixed_mean_norm_are_scaled_as_this_encoders_tokens_need(train, tmp_path):
    config = {
        "architecture": "standard",
        "hook_layer": 2,
        "normalize_activations": "expected_average_only_in",
    }
    publish(tmp_path / "theirs", config, d_in=8)
    (run,) = train(pairs=SmallPairs(60), runname="new", sae="theirs")
    encoder = SmallEncoder()
    found = encoder.activations(encoder.collate([encoder.preprocess(str(row)) for row in range(60)]), [2])
    scale = 8**0.5 / float(found.layers[2][found.mask].norm(dim=1).mean())
    expected = saelens.load("theirs", scale).encode(found.layers[2][:, 1])
    np.testing.assert_allclose(run.load("layer2").toarray(), expected, rtol=1e-4, atol=1e-5)
