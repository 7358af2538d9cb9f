"""run.json and the printed table: what was done, and scores worked out by hand."""

import json

import numpy as np
import pytest
import torch
from small_world import SmallEncoder, SmallPairs

import saelens
from training import manifest, plan, quality
from training.activations import Stream
from training.work import Work


def test_the_manifest_says_what_was_done(train):
    (run,) = train()
    manifest = json.loads((run.path / "run.json").read_text())
    names = dict(model="Small", checkpoint="none", modality="text", blocks=None, random_weights=None)
    assert manifest["encoder"] == names | {"encoder_precision": "float32"}
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
    encoder, sae = SmallEncoder(), saelens.load(run.path / "layer2")
    items = [encoder.preprocess(str(row)) for row in np.flatnonzero(held_out)]
    x = encoder.activations(encoder.collate(items), [2]).layers[2][:, :3].reshape(-1, 8)
    code = sae.encode(x).detach().double()
    residual = ((x.double() - (code @ sae.W_dec.detach().double() + sae.b_dec.detach().double())) ** 2).sum()
    variance = ((x.double() - x.double().mean(0)) ** 2).sum()
    assert run.manifest["fvu"]["layer2"] == pytest.approx(float(residual / variance), rel=1e-4)
    assert run.manifest["l0"]["layer2"] == pytest.approx(float((code > 0).sum(1).double().mean()))
    dead = float(((code > 0).sum(0) == 0).double().mean())
    assert run.manifest["dead_fraction"]["layer2"] == pytest.approx(dead)


def test_fewer_than_twenty_samples_are_all_trained_on_and_said_so(train):
    (run,) = train(pairs=SmallPairs(5))
    assert run.manifest["held_out"] is False
    assert run.manifest["evaluated_samples"] == 5
    assert "which it was trained on too" in manifest.table(run)


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
    encoder, sae = SinkEncoder(others=6), saelens.load(run.path / "layer2")
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
    sae, encoder = saelens.load(relu.path / "layer1"), SmallEncoder()
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


@pytest.mark.parametrize(("capability", "products"), [((7, 5), "float32"), ((8, 0), "tf32")])
def test_the_gpu_that_is_told_of_is_the_one_that_was_used(monkeypatch, capability, products):
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: {"cuda:1": capability}[device]
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: {"cuda:1": 77}[device])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: {"cuda:1": "the second"}[device])
    encoder = SmallEncoder()
    encoder.device = "cuda:1"
    work = Work(Stream(encoder, SmallPairs(5), [0]), [], np.zeros(5, bool), None, 0.0)
    found = manifest.costs(work)
    assert (found["peak_gpu_memory"], found["hardware"], found["device"]) == (77, "the second", "cuda:1")
    assert found["float32_products"] == products
