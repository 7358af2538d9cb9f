"""The scores against numbers worked out by hand and known cases."""

import numpy as np
import pytest
import scipy.sparse

from comparing import scores


def test_wmppc_and_mppc_by_hand():
    rho, total = np.array([0.5, 1.0, -0.25, 0.0]), np.array([2.0, 1.0, 4.0, 0.0])
    assert scores.wmppc(rho, total) == pytest.approx((1.0 + 1.0 - 1.0) / 7)
    assert scores.mppc(rho, total) == pytest.approx(1.25 / 3)  # the fourth is not live


def test_a_layer_without_live_features_has_no_score_and_no_say():
    dead = np.zeros(3)
    assert np.isnan(scores.wmppc(dead, dead))
    assert np.isnan(scores.mppc(dead, dead))
    assert scores.over_layers(np.array([0.5, np.nan, 0.2]), np.array([1, 50, 2])) == pytest.approx(0.3)


def test_layers_weigh_by_their_features():
    assert scores.over_layers(np.array([0.6, 0.3]), np.array([100, 200])) == pytest.approx(0.4)


def test_sharedness_by_hand():
    """Two models in G, whose worse counts, and two in H, whose better counts; a negative rho is none."""
    rho_G = np.array([[0.9, 0.5, -0.8], [0.7, 0.6, 0.9]])
    rho_H = np.array([[0.1, -0.9, 0.2], [0.3, -0.2, 0.4]])
    total = np.array([10.0, 2.0, 3.0])
    expected = [10 * (0.49 - 0.09), 2 * (0.25 - 0.0), 3 * (0.0 - 0.16)]
    np.testing.assert_allclose(scores.comparative_sharedness(rho_G, rho_H, total), expected)


# ----------------------------------------------------------------------------------------- older scores


def test_one_to_one_matching_by_hand():
    """The greedy maxima .9 and .8 share a target; one to one, .9 + .1 loses against .8 + .6."""
    r = np.array([[0.9, 0.6, 0.0], [0.8, 0.1, 0.0]])
    live = np.array([True, True]), np.array([True, True, True])
    assert scores.hungarian(r, *live) == pytest.approx((0.6 + 0.8) / 2)
    assert scores.hungarian(r.T, *live[::-1]) == pytest.approx(0.7)
    assert scores.hungarian(r, np.array([True, False]), live[1]) == pytest.approx(0.9)
    assert np.isnan(scores.hungarian(r, np.array([False, False]), live[1]))


def covariances(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ y / len(x), x.T @ x / len(x), y.T @ y / len(x)


def test_linear_cka_of_known_cases():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 6))
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    assert scores.linear_cka(*covariances(x, 3 * x @ rotation + 7)) == pytest.approx(1)
    assert scores.linear_cka(*covariances(x, rng.standard_normal((2000, 6)))) < 0.01
    gram = [side @ side.T for side in (x - x.mean(0), x[:, :2] - x[:, :2].mean(0))]  # HSIC's own form
    expected = (gram[0] * gram[1]).sum() / np.linalg.norm(gram[0]) / np.linalg.norm(gram[1])
    assert scores.linear_cka(*covariances(x, x[:, :2])) == pytest.approx(expected)
    assert np.isnan(scores.linear_cka(*covariances(x, np.ones((2000, 2)))))


def test_mutual_knn_is_that_of_the_cosine():
    rng = np.random.default_rng(1)
    sides = [rng.random((600, 20)) * (rng.random((600, 20)) < share) for share in (0.5, 0.4)]
    sides[1][:300] = sides[0][:300]
    near = []
    for side in sides:
        unit = side / np.linalg.norm(side, axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -1)
        near.append([set(row) for row in np.argsort(-similarity, axis=1)[:, :7]])
    expected = np.mean([len(a & b) / 7 for a, b in zip(*near, strict=True)])
    assert 0.2 < expected < 0.6
    for held in (sides, [scipy.sparse.csr_array(side) for side in sides]):
        assert scores.mutual_knn(*held, 7) == pytest.approx(expected, abs=1e-3)


def test_neighbours_that_are_equally_near_share_the_places_left():
    """Row 0 is like rows 1, 2 and 3; of two places each has 2/3. Row 4 is like none: all others have 1/2."""
    codes = np.array([[1.0, 0], [2, 0], [3, 0], [1, 0], [0, 0]])
    found = scores.nearness(scores._unit(codes), slice(0, 5), 2)
    np.testing.assert_allclose(found[0], [0, 2 / 3, 2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(found[4], [1 / 2, 1 / 2, 1 / 2, 1 / 2, 0])
    other = np.array([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [0, 1]])  # row 0 is near 1 and 2, row 4 near 3
    near = np.array([[1, 2], [0, 2], [0, 1], [2, 4], [2, 3]])
    expected = np.mean([found[row, near[row]].sum() / 2 for row in range(5)])
    assert scores.mutual_knn(codes, other, 2) == pytest.approx(expected)


def unrelated(rng, kind, n=600):
    """Codes that are drawn anew, of which the order of the rows must not make a likeness."""
    codes = (rng.random((n, 50)) < 0.1) * rng.random((n, 50))
    if kind == "half of the rows empty":
        codes[::2] = 0
    if kind == "few features, hardly any row like another":
        codes = (rng.random((n, 3000)) < 1 / 1500) * rng.random((n, 3000))
    if kind == "all rows alike":
        codes = np.ones((n, 3))
    if kind == "one feature a row":
        codes = np.eye(8)[rng.integers(0, 8, n)]
    if kind == "dense":
        codes = rng.random((n, 8))
    return codes


@pytest.mark.parametrize(
    "kind",
    [
        "half of the rows empty",
        "few features, hardly any row like another",
        "all rows alike",
        "one feature a row",
        "dense",
    ],
)
def test_unrelated_runs_score_chance(kind):
    rng = np.random.default_rng(2)
    x, y = unrelated(rng, kind), unrelated(rng, kind)
    assert scores.mutual_knn(x, y, 10) == pytest.approx(10 / 599, abs=0.012)
    order = rng.permutation(600)
    assert scores.mutual_knn(x[order], y[order], 10) == pytest.approx(scores.mutual_knn(x, y, 10))
