"""FVU, L0, dead and dense latents: known answers."""

import math

import numpy as np
import pytest
import torch

from training.quality import Quality


def scores(tokens, reconstruction, firings, offset=None, batches=1, recorded=None):
    quality = Quality(torch.zeros(tokens.shape[1]) if offset is None else offset, len(firings))
    recorded = torch.ones(len(tokens), dtype=torch.bool) if recorded is None else recorded
    for x, y, chosen in zip(
        *(part.chunk(batches) for part in (tokens, reconstruction, recorded)), strict=True
    ):
        quality.update(x, y, firings / batches, chosen)
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


@pytest.mark.parametrize("batches", [1, 5])
def test_the_recorded_tokens_have_an_fvu_about_their_own_mean(batches):
    random = np.random.default_rng(2)
    recorded = np.arange(40) % 4 == 1
    x = random.normal(0, 1, (40, 3)) + 20 * recorded[:, None]
    y = x + random.normal(0, 0.3, x.shape)
    found = scores(
        *map(torch.from_numpy, (x, y)), torch.ones(2).double(), None, batches, torch.from_numpy(recorded)
    )
    for fvu, part in ((found.fvu, slice(None)), (found.fvu_recorded, recorded)):
        mean = x[part].mean(0)
        assert fvu == pytest.approx(((x - y)[part] ** 2).sum() / ((x[part] - mean) ** 2).sum(), rel=1e-9)
    assert found.fvu_recorded > 10 * found.fvu


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize(
    ("larger", "count", "expected"),
    [(1.0, 0, 0.5), (1000.0, 4, 0.5 * 4 / 400), (10.0, 4, (400 + 396) / 2 / 400 * 0.01)],
)
def test_the_share_of_the_tokens_that_hold_half_of_the_variance(larger, count, expected, batches):
    """Tokens of one length in both directions of an axis, some of them longer: 4 of 400 at 10 times hold 400 of 796."""
    x = torch.zeros(400, 3)
    x[:, 0] = torch.tensor([1.0, -1.0]).repeat(200)
    for end in range(count):
        x[100 * end + end % 2] *= larger
    found = scores(x, x, torch.ones(2).double(), batches=batches).half_variance_tokens
    assert found == pytest.approx(expected, rel=0.02)


def test_latents_are_counted_over_all_tokens():
    tokens = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    found = scores(tokens, tokens, torch.tensor([0.0, 1.0, 10.0, 11.0, 100.0]).double())
    assert found.dead_fraction == pytest.approx(1 / 5)
    assert found.dense_fraction == pytest.approx(2 / 5)  # above a tenth of 100 tokens, not at it
    assert found.l0 == pytest.approx(1.22)


def test_tokens_that_are_all_the_same_have_no_fvu():
    tokens = torch.ones(10, 3)
    found = scores(tokens, tokens, torch.ones(2).double())
    assert math.isnan(found.fvu)
    assert math.isnan(found.fvu_recorded)
    assert math.isnan(found.half_variance_tokens)
