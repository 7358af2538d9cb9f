"""SAEs given with --sae: which layer each is of, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_world import SmallEncoder

from plumbing.errors import UserError
from sae import TopKSAE
from training import flags, given


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
    [("nowhere", None, "holds no SAE"), ("part", [0], r"layers \[1, 2\], not of \[0\]")],
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
