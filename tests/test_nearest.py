"""Partners and neighbours of features, against dense float64 correlations; chance gives partners nothing held out."""

import numpy as np
import pytest
import scipy.sparse

from comparing.halves import Side
from comparing.heldout import matched
from comparing.nearest import neighbours, partners

ROWS = 400


def correlations(x, y):
    """Dense float64 r [source, target]; 0 where a column is constant."""
    x, y = (side - side.mean(0) for side in (x, y))
    scale = np.sqrt(np.outer((x**2).sum(0), (y**2).sum(0)))
    return np.divide(x.T @ y, scale, out=np.zeros(scale.shape), where=scale > 0)


def sparse(dice, columns, share=0.1):
    return dice.random((ROWS, columns)) * (dice.random((ROWS, columns)) < share)


@pytest.fixture
def sides():
    """Two layers of 60 and 80 features, 40 of which are alike; feature 3 of each is too rare to count."""
    dice = np.random.default_rng(5)
    x, y = sparse(dice, 60), sparse(dice, 80)
    y[:, :40] = np.where(dice.random((ROWS, 40)) < 0.7, x[:, 20:60], y[:, :40])
    for side in (x, y):
        side[:, 3] = 0
        side[:4, 3] = 1
    half = dice.integers(0, 2, ROWS).astype(np.uint8)
    return x, y, half, *(Side(scipy.sparse.csr_array(side), half) for side in (x, y))


def test_partners_are_the_highest_over_all_rows_and_each_place_is_scored_on_the_other_half(sides):
    x, y, half, source, target = sides
    found = partners(source, target, 5)
    r = [
        np.where(target.counted, correlations(x[rows], y[rows]), -9)
        for rows in (half < 2, half == 0, half == 1)
    ]
    order = [np.argsort(-part, axis=1, kind="stable")[:, :5] for part in r]
    counted = np.flatnonzero(source.counted)
    assert (found.feature[counted] == order[0][counted]).all()
    crossed = [np.take_along_axis(r[2 - chosen], order[1 + chosen], axis=1) for chosen in (0, 1)]
    assert np.allclose(found.held_out[counted], np.mean(crossed, axis=0)[counted], atol=1e-6)
    assert np.allclose(found.r[counted], np.take_along_axis(r[0], order[0], axis=1)[counted], atol=1e-6)
    assert found.feature[3].tolist() == [-1] * 5
    assert not (found.feature == 3).any()


def test_the_first_place_is_what_the_comparison_reports(sides):
    *_, source, target = sides
    found, whole = partners(source, target, 3), matched(source, target)[0]
    counted = source.counted
    assert (found.feature[counted, 0] == whole.match[0, counted]).all()
    assert np.allclose(found.held_out[counted, 0], whole.held_out[counted], atol=1e-9)


def test_held_out_is_zero_on_average_where_nothing_is_shared(sides):
    _, y, half, source, _ = sides
    means = []
    for seed in range(30):
        shuffled = y[np.random.default_rng(seed).permutation(ROWS)]
        found = partners(source, Side(scipy.sparse.csr_array(shuffled), half), 5)
        means.append(found.held_out[source.counted].mean(axis=0))
        assert found.r[source.counted, 0].mean() > 0.1  # which choosing alone gives
    assert np.abs(np.mean(means, axis=0)).max() < 0.006  # chosen by what it reports: .03


def test_neighbours_are_of_the_same_layer_and_not_the_feature_itself(sides):
    x, _, _, source, _ = sides
    found = neighbours(source, 8)
    r = np.where(source.counted, correlations(x, x), -9)
    np.fill_diagonal(r, -9)
    counted = np.flatnonzero(source.counted)
    assert (found.feature[counted] == np.argsort(-r, axis=1, kind="stable")[counted, :8]).all()
    assert np.allclose(found.r[counted], -np.sort(-r, axis=1)[counted, :8], atol=1e-6)


def test_fewer_features_than_places_leave_places_empty(sides):
    x, _, half, source, _ = sides
    two = Side(scipy.sparse.csr_array(x[:, :2]), half)
    assert partners(source, two, 5).feature[0, 2:].tolist() == [-1, -1, -1]
    assert neighbours(two, 5).feature.tolist() == [[1, -1, -1, -1, -1], [0, -1, -1, -1, -1]]
