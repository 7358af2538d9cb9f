"""--encoder_precision: the encoder's arithmetic alone is in it, and run.json and a resume know of it."""

import json

import pytest
import torch
from small_world import SmallEncoder, SmallPairs

import wrappedmodels
from encoders import self_test
from encoders.inputs import sample_item
from plumbing.errors import UserError
from training import unfinished

LOWER = [("bfloat16", 2**-8), ("float16", 2**-11)]  # and the rounding of one number


@pytest.fixture(scope="module")
def bert():
    return wrappedmodels.load("DemoBert")


@pytest.fixture
def batch(bert):
    return bert.collate([bert.preprocess(sample_item("text", short)) for short in (True, False)])


@pytest.mark.parametrize(("precision", "rounding"), LOWER)
def test_tokens_are_float32_and_differ_by_the_rounding_of_their_precision(
    bert, batch, monkeypatch, precision, rounding
):
    exact = bert.activations(batch, [0, 2])
    seen = []
    hook = bert.blocks[0].register_forward_hook(
        lambda *_: seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
    )
    monkeypatch.setattr(bert, "precision", precision)
    found = bert.activations(batch, [0, 2])
    hook.remove()
    assert seen == [getattr(torch, precision)]
    assert not torch.is_autocast_enabled("cpu")
    for layer, tokens in found.layers.items():
        assert tokens.dtype == torch.float32
        error = (tokens - exact.layers[layer])[found.mask].norm() / exact.layers[layer][found.mask].norm()
        assert rounding / 20 < error < 10 * rounding


@pytest.mark.parametrize("precision", [precision for precision, _ in LOWER])
def test_a_sound_encoder_passes_its_self_test_in_a_lower_precision(bert, monkeypatch, precision):
    monkeypatch.setattr(bert, "precision", precision)
    self_test.self_test(bert, [sample_item("text", short) for short in (True, False)], [0, 2])


class Leaning(SmallEncoder):
    """A caption's tokens move with its batch mates by this share of their norm."""

    share = 0.02

    def activations(self, batch, layers):
        found = super().activations(batch, layers)
        moved = 1 + self.share * (len(found.mask) > 1)
        return found._replace(layers={layer: tokens * moved for layer, tokens in found.layers.items()})


@pytest.mark.parametrize(
    ("precision", "share", "passes"),
    [
        ("float32", 0.002, False),
        ("float16", 0.002, True),
        ("float16", 0.02, False),
        ("bfloat16", 0.02, True),
        ("bfloat16", 0.1, False),
    ],
)
def test_what_a_token_may_move_depends_on_the_precision(precision, share, passes):
    leaning = Leaning()
    leaning.precision, leaning.share = precision, share
    if passes:
        self_test.self_test(leaning, ["1", "2"], [0])
        return
    with pytest.raises(UserError, match="moves by"):
        self_test.self_test(leaning, ["1", "2"], [0])


def test_float16_that_overflows_names_bfloat16():
    broken = SmallEncoder(broken=(0, 1, float("inf")), broken_row=1)
    broken.precision = "float16"
    with pytest.raises(UserError, match="not finite; type --encoder_precision bfloat16"):
        self_test.self_test(broken, ["1", "2"], [0])


def test_run_json_holds_it_and_an_unknown_one_is_refused(train):
    assert (
        wrappedmodels.load("DemoBert", encoder_precision="bfloat16").asked["encoder_precision"] == "bfloat16"
    )
    encoder = SmallEncoder()
    encoder.asked = {**encoder.asked, "encoder_precision": "bfloat16"}
    (run,) = train(encoder, SmallPairs(30), layers=[0])
    assert run.manifest["encoder"]["encoder_precision"] == "bfloat16"
    with pytest.raises(UserError, match="float32, bfloat16, float16"):
        wrappedmodels.load("DemoBert", encoder_precision="int8")


@pytest.mark.parametrize(
    ("began_with", "difference"), [(None, None), ("bfloat16", "encoder_precision was bfloat16")]
)
def test_a_resume_compares_it_and_one_that_does_not_say_was_float32(tmp_path, began_with, difference):
    one = unfinished.Unfinished(tmp_path)
    mark = {"version": 2, "runs": {"run": {}}} | ({"encoder_precision": began_with} if began_with else {})
    one.file.write_text(json.dumps(mark))
    found = unfinished.first_difference(one.mark(), mark | {"encoder_precision": "float32"})
    assert found == (difference and f"{difference}, now float32")
