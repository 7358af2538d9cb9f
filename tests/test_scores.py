"""The scores against numbers worked out by hand and known cases."""

import numpy as np
import pytest

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
