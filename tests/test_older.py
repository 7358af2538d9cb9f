"""Soft matching, debiased CKA, mutual neighbours and PW-MCC against dense float64 numpy and hand-made cases."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from runs import make_run

from comparing import older
from comparing.draws import Cell, Layer
from comparing.older import debiased_cka, mutual_neighbours, pw_mcc, soft_matching
from comparing.reader import Reader


def codes(kind, n_rows=80, width=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(n_rows, width)) * (
        rng.random((n_rows, width)) < {"dense": 1, "sparse": 0.2}[kind]
    )
    return x.astype(np.float32)


def test_soft_matching_is_hand_computed():
    r = np.array([[0.9, 0.1, 0.8, 0.0], [0.0, 0.6, 0.1, 0.5]])
    assert soft_matching(r, r) == pytest.approx((0.9 + 0.8 + 0.6 + 0.5) / 4)
    assert soft_matching(r.T, r.T) == pytest.approx(0.7)
    square = np.array([[0.9, 0.8], [0.8, 0.1]])
    assert soft_matching(square, np.eye(2)) == 0, "the plan of one half is scored by the other"
    assert np.isnan(soft_matching(np.zeros((0, 3)), np.zeros((0, 3))))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 10)])
def test_soft_matching_is_the_best_plan(shape):
    """Against one-to-one matching of features repeated until both sides are as long."""
    r = np.random.default_rng(1).standard_normal(shape)
    a, b = (np.lcm(*shape) // size for size in shape)
    repeated = np.repeat(np.repeat(r, a, axis=0), b, axis=1)
    best = repeated[scipy.optimize.linear_sum_assignment(repeated, maximize=True)].mean()
    assert soft_matching(r, r) == pytest.approx(best, abs=1e-9)


def test_a_large_plan_is_made_of_the_best_candidates(monkeypatch):
    r = np.random.default_rng(2).random((40, 60)) ** 4
    whole = soft_matching(r, r)
    monkeypatch.setattr(older, "SMALL_PLAN", 0)
    assert soft_matching(r, r) == pytest.approx(whole, abs=1e-3)


def kernel_cka(x, y):
    """Debiased CKA by its definition, from kernels of all pairs of rows."""

    def hsic(a, b):
        k, m = (side.astype(float) @ side.astype(float).T for side in (a, b))
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        n = len(k)
        last = 2 / (n - 2) * (k @ m).sum()
        return (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - last) / (n * (n - 3))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_debiased_cka_is_that_of_the_kernels(kind):
    x, y = codes(kind), codes(kind, seed=1)
    y[:, :4] += x[:, :4]

    expected = kernel_cka(x, y)
    assert debiased_cka(x, y) == pytest.approx(expected, abs=1e-6)
    assert debiased_cka(scipy.sparse.csr_array(x), scipy.sparse.csr_array(y)) == pytest.approx(
        expected, abs=1e-6
    )
    assert debiased_cka(x, 3 * x[:, ::-1]) == pytest.approx(1)
    assert np.isnan(debiased_cka(x, np.zeros_like(y)))


@pytest.mark.parametrize("kind", ["relu", "means 100 times the spread", "one live feature"])
def test_cka_is_the_same_held_and_streamed(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = (np.maximum(np.random.default_rng(seed).standard_normal((300, 12)), 0) for seed in (0, 1))
    y[:, :6] += 0.5 * x[:, :6]
    if kind == "means 100 times the spread":
        x, y = x + 100, y + 100
    if kind == "one live feature":
        x[:, 1:] = 0
    layers = [
        Layer(make_run(name, {"layer0": of}, part_rows=70), "layer0")
        for name, of in zip("ab", (x, y), strict=True)
    ]
    held, streamed = Reader(1 << 30), Reader(20_000)
    assert [reader.fits(Cell(*layers)) for reader in (held, streamed)] == [True, False]
    found = [older.cka(*layers, reader).value for reader in (held, streamed)]
    expected = kernel_cka(*(of.astype(np.float32) - of.mean(axis=0) for of in (x, y)))
    assert found == pytest.approx([expected] * 2, abs=1e-6)


def test_debiased_cka_is_0_by_chance():
    values = [debiased_cka(codes("sparse", seed=2 * i), codes("sparse", seed=2 * i + 1)) for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)


def test_mutual_neighbours_are_those_of_all_pairs():
    x, y = codes("dense", 300), codes("dense", 300, seed=1)
    y[:, :6] += 2 * x[:, :6]

    def nearest(rows):
        unit = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
        similar = unit @ unit.T
        np.fill_diagonal(similar, -2)
        return np.argsort(-similar, axis=1)[:, :10]

    shared = [len(set(a) & set(b)) / 10 for a, b in zip(nearest(x), nearest(y), strict=True)]
    found = mutual_neighbours(x, scipy.sparse.csr_array(y))
    assert found.value == pytest.approx(np.mean(shared))
    assert found.floor == pytest.approx(10 / 299)
    assert mutual_neighbours(x, x).value == pytest.approx(1)


def test_ties_and_empty_rows_agree_no_more_than_by_chance():
    empty, x = np.zeros((50, 4), np.float32), codes("dense", 50, 4)
    for pair in ((empty, empty), (empty, x), (np.ones_like(x), x)):
        found = mutual_neighbours(*pair)
        assert found.value == pytest.approx(found.floor)
    order = np.random.default_rng(0).permutation(60)
    few = np.round(codes("sparse", 60, 4), 0)
    assert mutual_neighbours(few, few[:, ::-1]).value == pytest.approx(
        mutual_neighbours(few[order], few[order][:, ::-1]).value
    )


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
    assert mutual_neighbours(x, y).value == pytest.approx(10 / 599, abs=0.012)
    order = rng.permutation(600)
    assert mutual_neighbours(x[order], y[order]).value == pytest.approx(mutual_neighbours(x, y).value)


def test_pw_mcc_matches_decoder_rows_whatever_their_order_and_sign():
    rows = np.random.default_rng(0).standard_normal((20, 30))
    assert pw_mcc(rows, -2 * rows[::-1]) == pytest.approx(1)
    assert pw_mcc(np.eye(3), np.array([[1.0, 1, 0], [0, 0, 1]])) == pytest.approx((1 / np.sqrt(2) + 1) / 2)
    assert pw_mcc(np.zeros((2, 3)), np.eye(3)) == 0
