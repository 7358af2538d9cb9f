"""Both halves' maxima, what they score on the other half, and standard errors, against dense float64 numpy."""

import numpy as np
import pytest
import scipy.sparse

from comparing.clusters import clusters, permutation
from comparing.found import Matched, Shuffled
from comparing.halves import Moments, Side
from comparing.heldout import matched, shuffled, streamed
from comparing.influence import feature_errors, influence, influence_of_blocks, streamed_feature_errors

N_ROWS, WIDTHS = 600, (40, 30, 20)


def correlations(x, y):
    """r [source, target] in float64; 0 where a column is constant."""
    x, y = (side.astype(float) - side.astype(float).mean(0) for side in (x, y))
    sd_x, sd_y = (np.where(np.ptp(side, axis=0) > 0, side.std(0), np.inf) for side in (x, y))
    return x.T @ y / len(x) / sd_x[:, None] / sd_y


def data(kind, seed=0):
    """A source layer and two target layers, float32, and clusters of three rows each."""
    rng = np.random.default_rng(seed)
    share = {"sparse": 0.05, "dense": 0.7, "clustered": 0.2, "large mean": 0.2, "empty": 0.1}[kind]
    layers = [(rng.exponential(size=(N_ROWS, w)) * (rng.random((N_ROWS, w)) < share)) for w in WIDTHS]
    if kind == "clustered":
        layers = [np.repeat(layer[::3], 3, axis=0) * rng.random((N_ROWS, layer.shape[1])) for layer in layers]
    if kind == "large mean":
        layers = [layer + 100 for layer in layers]
    x, y, z = (layer.astype(np.float32) for layer in layers)
    y[:, :8] += x[:, :8]
    if kind == "empty":
        y[:] = 0
    x[:, 3], y[:, 4], x[:, 5] = 0, 0, 2  # never active; active on all rows alike
    x[:596, 6], y[:590, 9] = 0, 0  # too seldom, and just often enough
    names = [f"{number // 3}" for number in range(N_ROWS)]
    groups = clusters(names)
    x[groups.half == 0, 7] = 0  # silent on one half
    y[:, 11] = y[:, 10]  # as good as each other
    return x, y, z, groups


def side(matrix, groups, kind="sparse"):
    return Side(matrix if kind == "dense" else scipy.sparse.csr_array(matrix), groups.half)


def expected(r, own, other, varies):
    """rho and match of one part from all correlations."""
    if not other.any():
        return np.zeros(len(r)), np.full(len(r), -1)
    chosen = np.flatnonzero(other)
    best = r[:, chosen].max(axis=1, keepdims=True)
    first = (r[:, chosen] > best - 1e-10).argmax(axis=1)
    return np.where(varies, best[:, 0], 0), np.where(varies, chosen[first], -1)


def over_layers(source, targets):
    """The best partners among two target layers, whose features are numbered on."""
    best, other = (matched(source, target)[0] for target in targets)
    best.merge(other, targets[0].n_features)
    return best


KINDS = ("sparse", "dense", "clustered", "large mean", "empty")


@pytest.mark.parametrize("kind", KINDS)
def test_all_maxima_of_both_directions_are_those_of_the_dense_formula(kind):
    x, y, _, groups = data(kind)
    rows = [slice(None), groups.half == 0, groups.half == 1]
    r = [correlations(x[part], y[part]) for part in rows]
    counts = [(layer > 0).sum(0) >= 10 for layer in (x, y)]
    found = matched(side(x, groups, kind), side(y, groups, kind))
    turned = [one.T for one in r]
    for one, all_r, layer, own, other in ((found[0], r, x, *counts), (found[1], turned, y, *counts[::-1])):
        varies = [np.ptp(layer[part], axis=0) > 0 for part in rows]
        best = [expected(all_r[part], own, other, varies[part]) for part in range(3)]
        for part, (rho, match) in enumerate(best):
            assert np.abs(one.rho[part] - rho)[own].max(initial=0) < 1e-9
            assert np.array_equal(one.match[part][own], match[own])
        for half in (0, 1):
            match = best[half + 1][1]
            crossed = np.where(match >= 0, all_r[2 - half][np.arange(len(match)), match], 0)
            assert np.abs(one.crossed[half] - crossed)[own].max(initial=0) < 1e-9
        assert np.abs(one.every - all_r[0].max(axis=1)).max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_slices_and_processes_change_nothing(kind):
    x, y, _, groups = data(kind)
    partner = permutation(groups, 0)
    held = matched(side(x, groups, kind), side(y, groups, kind))
    by_chance = shuffled(side(x, groups, kind), side(y, groups, kind), partner)

    def blocks(layer, size, rows=slice(None)):
        layer = layer[rows] if kind == "dense" else scipy.sparse.csr_array(layer[rows])
        return lambda: (layer[start : start + size] for start in range(0, layer.shape[0], size))

    def halves(y=y):
        sides = zip(blocks(x, 77)(), blocks(y, 77)(), blocks(groups.half[:, None], 77)(), strict=True)
        return ((a, b, c.toarray()[:, 0] if scipy.sparse.issparse(c) else c[:, 0]) for a, b, c in sides)

    def shuffled_blocks():
        return halves(y[partner])

    pairs = [(held, streamed(Matched, halves, WIDTHS[:2], memory=16 * WIDTHS[1] * 7))]
    pairs.append((by_chance, streamed(Shuffled, shuffled_blocks, WIDTHS[:2], memory=8 * WIDTHS[1] * 7)))
    for one, other in pairs:
        for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9, rtol=0)
    r = correlations(x, y[partner])
    np.testing.assert_allclose(by_chance[0].every, r.max(1), atol=1e-9)
    np.testing.assert_allclose(by_chance[1].every, r.max(0), atol=1e-9)


def test_processes_that_read_their_own_rows_add_up():
    x, y, _, groups = data("sparse")
    parts = [(scipy.sparse.csr_array(x[rows]), scipy.sparse.csr_array(y[rows]), groups.half[rows])
             for rows in (slice(0, 250), slice(250, None))]  # fmt: skip
    log = []  # what the second process holds, in the order in which it is asked

    def remember(array, how):
        log.append(array.copy())

    def add(array, how):
        other = log.pop(0)
        array[...] = {"SUM": np.add, "MIN": np.minimum, "MAX": np.maximum}[how](array, other)

    streamed(Matched, lambda: iter(parts[1:]), WIDTHS[:2], add_up=remember)
    found = streamed(Matched, lambda: iter(parts[:1]), WIDTHS[:2], add_up=add)
    for a, b in zip(found[0], matched(side(x, groups), side(y, groups))[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_threads_change_nothing(monkeypatch):
    x, y, _, groups = data("clustered")
    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        sides = side(x, groups), side(y, groups)
        found.append([*matched(*sides), *shuffled(*sides, permutation(groups, 0))])
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_two_target_layers_are_as_one_wide_layer():
    x, y, z, groups = data("sparse")
    source = side(x, groups)
    found = over_layers(source, [side(layer, groups) for layer in (y, z)])
    wide = matched(source, side(np.hstack([y, z]), groups))[0]
    for a, b in zip(found, wide, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_order_of_rows_and_positive_scales_change_nothing():
    x, y, _, groups = data("clustered")
    order = np.random.default_rng(5).permutation(N_ROWS)
    moved = groups.take(order)
    scale = np.float32(2.0) ** np.arange(WIDTHS[0]) / 2**20
    one, other = (
        matched(side(x, groups), side(y, groups)),
        matched(side((x * scale)[order], moved), side(y[order], moved)),
    )
    for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_moments_and_n_eff_are_those_of_numpy():
    x, _, _, groups = data("sparse")
    moments = Moments.of(scipy.sparse.csr_array(x), groups.half)
    blocks = Moments.of(x[:100], groups.half[:100]).plus(Moments.of(x[100:], groups.half[100:]))
    x = x.astype(float)
    for found in (moments, blocks):
        for half in (0, 1):
            rows = x[groups.half == half]
            assert found.n[half] == len(rows)
            for name, value in (
                ("total", rows),
                ("square", rows**2),
                ("fourth", rows**4),
                ("active", rows > 0),
            ):
                np.testing.assert_allclose(getattr(found, name)[half], value.sum(0), rtol=1e-12)
            assert np.array_equal(found.low[half], rows.min(0))
            assert np.array_equal(found.high[half], rows.max(0))
    square, fourth = (x**2).sum(0), (x**4).sum(0)
    np.testing.assert_allclose(moments.n_eff, np.divide(square**2, fourth, where=fourth > 0, out=0 * fourth))


# -------------------------------------------------------------------------------------------- standard errors


def dense_influence(x, y, match, weighs):
    """IF_n as influence.py's docstring has it, each feature's own part of it, theta and r, on the given rows."""
    x, y = x.astype(float), y.astype(float)

    def standardised(layer):
        sd = np.where(np.ptp(layer, axis=0) > 0, layer.std(0), np.inf)
        return (layer - layer.mean(0)) / sd

    z, w, mu = standardised(x), standardised(y)[:, match], x.mean(0) * weighs
    z[:, match < 0] = w[:, match < 0] = 0
    r = (z * w).mean(0)
    theta = mu @ r / mu.sum()
    own = z * w - r * (z**2 + w**2) / 2
    return (own @ mu + ((x - x.mean(0)) * weighs) @ (r - theta)) / mu.sum(), own, theta


@pytest.mark.parametrize("kind", KINDS)
def test_influence_and_errors_are_those_of_the_dense_formula(kind):
    x, y, z, groups = data(kind)
    source, targets = side(x, groups, kind), [side(layer, groups, kind) for layer in (y, z)]
    found = over_layers(source, targets)
    both, weighs = np.hstack([y, z]), (x > 0).sum(0) >= 10
    halves, squares = np.zeros(N_ROWS), np.zeros(WIDTHS[0])
    for half in (0, 1):
        rows = groups.half == half
        row_influence, own, _ = dense_influence(x[rows], both[rows], found.match[2 - half], weighs)
        halves[rows] = row_influence / rows.sum() / 2
        by_cluster = np.zeros((groups.n, WIDTHS[0]))
        np.add.at(by_cluster, groups.ids[rows], own)
        squares += (by_cluster**2).sum(0) / rows.sum() ** 2
    full = dense_influence(x, both, found.match[0], weighs)[0] / N_ROWS
    got = influence(source, targets, found)
    np.testing.assert_allclose(got.halves, halves, atol=1e-10)
    np.testing.assert_allclose(got.full, full, atol=1e-10)
    np.testing.assert_allclose(
        feature_errors(source, targets, found, groups), np.sqrt(squares) / 2, atol=1e-9
    )
    sums = [np.array([part[groups.ids == c].sum() for c in range(groups.n)]) for part in (halves, full)]
    assert got.se(groups) == pytest.approx(max(np.sqrt((one**2).sum()) for one in sums), abs=1e-10)


def test_influence_by_blocks_of_several_processes_adds_up():
    x, y, z, groups = data("sparse")
    source, targets = side(x, groups), [side(layer, groups) for layer in (y, z)]
    found = over_layers(source, targets)
    whole, moments = influence(source, targets, found), [target.moments for target in targets]

    def share(first, last):
        layers = [[(x[a : a + 50], layer[a : a + 50]) for a in range(first, last, 50)] for layer in (y, z)]
        return influence_of_blocks(layers, groups.half, source.moments, moments, found, start=first)

    one, other = share(0, 250), share(250, N_ROWS)
    np.testing.assert_allclose(one.halves + other.halves, whole.halves, atol=1e-15)
    np.testing.assert_allclose(one.full + other.full, whole.full, atol=1e-15)


def test_feature_errors_are_the_same_a_few_features_at_a_time():
    x, y, z, groups = data("sparse")
    source, targets = side(x, groups), [side(layer, groups) for layer in (y, z)]
    found = over_layers(source, targets)
    readers = [lambda layer=layer: (layer[a : a + 90] for a in range(0, N_ROWS, 90)) for layer in (x, y, z)]
    few = streamed_feature_errors(readers[0], readers[1:], groups.half, found, groups, 7)
    np.testing.assert_allclose(few, feature_errors(source, targets, found, groups), atol=1e-12)


def test_the_error_is_that_of_resampled_clusters():
    """A bootstrap of clusters with the partners fixed spreads as the influence function says."""
    x, y, _, groups = data("clustered")
    source, target = side(x, groups), side(y, groups)
    found = matched(source, target)[0]
    weighs, match = source.counted, found.match[0]
    rng, scores = np.random.default_rng(0), []
    rows_of = [np.flatnonzero(groups.ids == number) for number in range(groups.n)]
    for _ in range(400):
        rows = np.concatenate([rows_of[number] for number in rng.integers(0, groups.n, groups.n)])
        scores.append(dense_influence(x[rows], y[rows], match, weighs)[2])
    full = influence(source, [target], found).full
    se = np.sqrt((np.bincount(groups.ids, full) ** 2).sum())
    assert se == pytest.approx(np.std(scores), rel=0.12)
