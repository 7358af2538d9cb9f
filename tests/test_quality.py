"""FVU, L0, dead and dense latents: known answers."""

import math

import numpy as np
import pytest
import torch

from quality import Quality


def scores(tokens, reconstruction, firings, offset=None, batches=1, n_tokens=None):
    quality = Quality(torch.zeros(tokens.shape[1]) if offset is None else offset, len(firings))
    for x, y in zip(tokens.chunk(batches), reconstruction.chunk(batches), strict=True):
        quality.update(x, y, firings / batches)
    return quality.scores()


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_predicting_the_mean_gives_one_and_the_truth_gives_zero(batches, shift):
    tokens = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) + shift
    mean = tokens.double().mean(0).float().expand_as(tokens)
    firings = torch.ones(3).double()
    assert scores(tokens, mean, firings, offset=tokens[0], batches=batches).fvu == pytest.approx(1, abs=1e-5)
    assert scores(tokens, tokens, firings, batches=batches).fvu == 0


def test_fvu_is_numpys_in_float64():
    random = np.random.default_rng(1)
    x = random.normal(50, 1, (64, 6)).astype(np.float32)
    y = (x + random.normal(0, 0.3, x.shape)).astype(np.float32)
    expected = ((x - y).astype(float) ** 2).sum() / ((x - x.astype(float).mean(0)) ** 2).sum()
    found = scores(torch.from_numpy(x), torch.from_numpy(y), torch.ones(2).double(), batches=4)
    assert found.fvu == pytest.approx(expected, rel=1e-6)


def test_latents_are_counted_over_all_tokens():
    tokens = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    found = scores(tokens, tokens, torch.tensor([0.0, 1.0, 10.0, 11.0, 100.0]).double())
    assert found.dead_fraction == pytest.approx(1 / 5)
    assert found.dense_fraction == pytest.approx(2 / 5)  # above a tenth of 100 tokens, not at it
    assert found.l0 == pytest.approx(1.22)


def test_tokens_that_are_all_the_same_have_no_fvu():
    tokens = torch.ones(10, 3)
    assert math.isnan(scores(tokens, tokens, torch.ones(2).double()).fvu)
