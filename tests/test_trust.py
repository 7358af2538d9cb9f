"""What tells how far a score can be trusted: by hand and against dense numpy, and its promises on planted worlds."""

from itertools import count

import numpy as np
import pytest
import scipy.sparse

from benchmarks import planted
from benchmarks.planted import Setting, captioned, sharedness, sides, world
from comparing import trust
from comparing.clusters import clusters, permutation
from comparing.drivers import drivers, nuisance
from comparing.found import Facts, Found, Matched, Shuffled, weighted
from comparing.halves import Side
from comparing.heldout import matched, shuffled
from comparing.influence import held_out, influence
from comparing.passes import STEADY_FROM, Held, evidence, numbers
from comparing.results import harmonic_mean
from comparing.sharedness import sharedness_order, statuses
from comparing.trust import coverage, discovered, discoveries, smoothed

SMALL = Setting(n_rows=4000, d_A=256, d_B=256)


def found_of(rho, total, active=None, held=None, match=None):
    """A Found made by hand; all features count."""
    rho, total = np.array(rho, float), np.array(total, float)
    held = rho if held is None else np.array(held, float)
    n = len(rho)
    match = np.zeros((3, n), np.int64) if match is None else np.tile(match, (3, 1))
    facts = Facts(
        total, np.ones(n, bool), np.full(n, 0.05) if active is None else np.array(active), np.ones(n)
    )
    return Found(facts, Matched(np.tile(rho, (3, 1)), match, np.tile(held, (2, 1)), rho), [])


# ------------------------------------------------------------------------------------------------- by hand


def test_coverage_is_the_weight_at_or_above_each_threshold():
    found = coverage(np.array([0.3, 0.29, 0.7, -0.1]), np.array([1.0, 2, 3, 4]))
    assert found == pytest.approx({"0.2": 0.6, "0.3": 0.4, "0.4": 0.3, "0.5": 0.3, "0.6": 0.3, "0.7": 0.3})


def test_adjusted_is_not_clipped():
    assert trust.adjusted(0.6, 0.2) == pytest.approx(0.5)
    assert trust.adjusted(0.1, 0.2) == pytest.approx(-0.125)
    assert np.isnan(trust.adjusted(1.0, 1.0))
    assert trust.adjusted(0.6, None) is None


def test_both_directions_and_references():
    assert harmonic_mean(0.567, 0.347) == pytest.approx(0.4305, abs=1e-4)
    assert harmonic_mean(-0.001, 0.3) == 0
    assert trust.seed_reference({"0.3": 0.6}, {"0.3": 0.5}) == pytest.approx(1.2), "never clipped"
    assert trust.seed_reference({"0.3": 0.6}, {"0.3": 0.0}) is None
    assert trust.attenuation(0.3, 0.9, 0.4) == pytest.approx(0.5)
    assert trust.attenuation(0.3, -0.1, 0.4) is None


def test_what_drives_a_score():
    forward = found_of([0.9, 0.5, 0.1], [6, 3, 1], active=[0.6, 0.2, 0.01], match=[1, 1, 0])
    backward = found_of([0.4, 0.9, 0.0], [1, 1, 1], match=[1, 0, 2])
    found = drivers(forward, backward, clusters(["a", "b", "b"]))
    assert found.dense["0.1"] == pytest.approx((0.9, 0.1))
    assert found.dense["0.5"] == pytest.approx((0.6, (1.5 + 0.1) / 4))
    assert (found.hubs, found.mutual) == pytest.approx((2 / 3, 1 / 3))
    assert (found.clusters, found.largest) == (2, 2)


def test_a_status_names_the_run_that_breaks_it():
    rho_G, rho_H = (
        np.array([[0.5, 0.5, 0.5, 0.1], [0.6, 0.35, 0.5, 0.6]]),
        np.array([[0.1, 0.1, 0.3, 0.1], [0.15, 0, 0.7, 0.19]]),
    )
    se = np.full((2, 4), 0.02)
    found = statuses(rho_G, se, rho_H, se, ["clip", "bert"], ["vit", "dino"])
    assert [one.text for one in found] == [
        "present, absent",
        "present, absent",
        "present, in dino",
        "not in clip, in dino",
    ]
    assert [one.rank for one in found] == [0, 0, 1, 3]
    wide = statuses(rho_G, 2 * se, rho_H, 2 * se, ["clip", "bert"], ["vit", "dino"])
    assert wide[1].text == "not in bert, absent", "its interval reaches below .3"
    assert sharedness_order(found, np.array([1.0, 2, 9, 8])).tolist() == [1, 0, 2, 3]


def test_discoveries_are_the_longest_prefix_with_few_decoys():
    """With 40 clear targets and then a decoy, q = .05 keeps 39 of 40: (1 + 0) / 40; the rest is noise."""
    rng = np.random.default_rng(0)
    null, decoy = 0.1 + 0.01 * rng.standard_normal(200), 0.1 + 0.01 * rng.standard_normal(200)
    rho = 0.1 + 0.01 * rng.standard_normal(200)
    rho[:40] = 0.5
    found = discoveries(rho, decoy, null, rng.random(200))
    assert found[:40].all()
    assert found[40:].sum() <= 2
    assert not discoveries(np.where(np.arange(200) < 15, 0.5, 0.0), decoy, null, rng.random(200)).any(), (
        "1 / 15 > q"
    )


def test_the_null_is_smoothed_over_the_nearest_in_n_eff(monkeypatch):
    rng = np.random.default_rng(0)
    values, n_eff = rng.random(300), rng.random(300)
    location, scale = smoothed(values, n_eff)
    order = np.argsort(n_eff)
    for rank in (0, 20, 150, 299):
        near = values[order[np.clip(rank - 50, 0, 199) : np.clip(rank - 50, 0, 199) + 101]]
        assert location[order[rank]] == pytest.approx(near.mean())
        assert scale[order[rank]] == pytest.approx(near.std())
    assert smoothed(values[:7], n_eff[:7])[0] == pytest.approx(np.full(7, values[:7].mean()))


def test_permutations_go_on_only_on_small_data_until_the_floor_is_steady():
    def drawn(stored, spread, at_least=2):
        floors = ([0.1 + spread * (-1) ** number, 0.1] for number in count())
        return len(list(numbers(stored, at_least, floors)))

    assert drawn(5e6, 1.0) == 2
    assert drawn(1e6, 1.0) == 20
    assert drawn(1e6, 0.0) == STEADY_FROM
    assert drawn(1e6, 0.0015) == 11, "the first with an error below .0005"
    assert drawn(1e7, 1.0, at_least=5) == 5


# ------------------------------------------------------------------------------------ against dense numpy


def test_a_score_is_that_of_the_dense_formulas():
    rng = np.random.default_rng(0)
    x, y, z = (
        np.float32(rng.exponential(size=(800, w)) * (rng.random((800, w)) < 0.1)) for w in (30, 40, 20)
    )
    y[:, :10] += x[:, :10]
    x[20:, 4] = 0
    groups = clusters([str(row // 2) for row in range(800)])
    sides_of = [Side(scipy.sparse.csr_array(layer), groups.half) for layer in (x, y, z)]
    passed = evidence(Held(sides_of[:1], sides_of[1:]), groups, permutations=3)
    score = trust.score(passed.forward["all_layers"], groups)
    targets, total = np.hstack([y, z]), x.sum(0, dtype=float)

    def r(rows, partner=slice(None)):
        return np.corrcoef(x[rows].T.astype(float), targets[partner][rows].T.astype(float))[:30, 30:]

    n = len(passed.forward["all_layers"][0].shuffled)
    floors = [total @ r(slice(None), permutation(groups, p)).max(1) / total.sum() for p in range(n)]
    assert score.value == pytest.approx(total @ r(slice(None)).max(1) / total.sum(), abs=1e-9)
    assert score.floor == pytest.approx(np.mean(floors), abs=1e-9)
    first, second = (r(groups.half == half) for half in (0, 1))
    counted = (x > 0).sum(0) >= 10
    held = (second[np.arange(30), first.argmax(1)] + first[np.arange(30), second.argmax(1)]) / 2
    weight = total * counted
    assert score.held_out == pytest.approx(weight @ held / weight.sum(), abs=1e-9)
    assert score.coverage["0.3"] == pytest.approx(weight[held >= 0.3].sum() / weight.sum())
    assert score.interval[0] < score.held_out < score.interval[1]
    back = trust.score(passed.backward["last_layer"], groups)
    assert back.value == pytest.approx(z.sum(0) @ np.corrcoef(z.T, x.T)[:20, 20:].max(1) / z.sum(), abs=1e-6)


def test_a_shared_nuisance_shows_within_its_strata_and_the_root_is_scored_like_x():
    """With fewer than 200 sources, all are sampled: then these are the scores themselves."""
    rng = np.random.default_rng(0)
    stratum = rng.integers(0, 4, 1200)
    often = 0.02 + 0.1 * stratum[:, None]
    x, y = (np.float32(rng.exponential(size=(1200, 30)) * (rng.random((1200, 30)) < often)) for _ in range(2))
    groups = clusters([str(row) for row in range(1200)])
    X, Y, roots_x, roots_y = (Side(layer, groups.half) for layer in (x, y, np.sqrt(x), np.sqrt(y)))
    found = evidence(Held([X], [Y]), groups).forward["last_layer"][0]
    within = permutation(groups, 0, stratum)
    got = nuisance(X, Y, found, within)
    r = np.corrcoef(x.T.astype(float), y[within].T.astype(float))[:30, 30:]
    assert got.strata_floor == pytest.approx(X.total @ r.max(1) / X.total.sum())
    assert got.strata_floor > 1.5 * got.floor
    score = trust.score([found], groups)
    assert (got.floor, got.held_out) == pytest.approx((score.floor, score.held_out))
    root = trust.score(evidence(Held([roots_x], [roots_y]), groups).forward["last_layer"], groups)
    assert got.held_out_sqrt == pytest.approx(root.held_out, abs=1e-6)


def test_a_difference_is_paired_over_samples():
    made, other = world(SMALL, 0.5, 0), world(SMALL, 0.5, 0)
    (A, B, B2), groups = sides([made.A, made.B, made.B2])
    first, second = (evidence(Held([A], [target]), groups).forward["last_layer"] for target in (B, B2))
    value, (low, high) = trust.difference(first, second, groups)
    alone = [trust.score(found, groups) for found in (first, second)]
    assert value == pytest.approx(alone[0].held_out - alone[1].held_out)
    assert low < 0 < high, "two seeds of one side"
    assert high - low < 0.8 * sum(one.interval[1] - one.interval[0] for one in alone)
    assert trust.difference(first, first, groups) == (0, (0, 0))
    assert other.shared_A.sum() == 128


@pytest.mark.parametrize("kind", ["never active", "constant", "too rare"])
def test_runs_without_a_feature_that_counts_have_a_bare_score_only(kind):
    layer = np.zeros((200, 5), np.float32)
    layer[: {"never active": 0, "constant": 200, "too rare": 9}[kind]] = 1
    other = np.random.default_rng(0).random((200, 4)).astype(np.float32)
    groups = clusters([str(row) for row in range(200)])
    passed = evidence(Held([Side(layer, groups.half)], [Side(other, groups.half)]), groups)
    score = trust.score(passed.forward["last_layer"], groups)
    back = trust.score(passed.backward["last_layer"], groups)
    if kind == "constant":
        assert (score.value, score.held_out, score.interval) == (0, 0, (0, 0))
    else:
        assert score.held_out is None
        assert np.isnan(score.value) == (kind == "never active")
    assert back.held_out == 0


# ----------------------------------------------------------------------------------- must hold


def interval(codes, names=None):
    (A, B), groups = sides(codes, names)
    found = matched(A, B)[0]
    return influence(A, [B], found).interval(groups)


@pytest.mark.slow
def test_a_the_interval_of_unrelated_runs_covers_0():
    """100 pairs of 4,000 rows: at least 90."""
    made = [world(SMALL, 0.0, seed) for seed in range(100)]
    assert sum(low <= 0 <= high for low, high in (interval([one.A, one.B]) for one in made)) >= 90


def test_b_identical_runs_are_held_out_at_exactly_1():
    made = world(SMALL, 0.0, 0)
    (A, B), groups = sides([made.A, made.A.copy()])
    score = trust.score(evidence(Held([A], [B]), groups).forward["last_layer"], groups)
    assert score.held_out == pytest.approx(1, abs=1e-12)
    assert score.interval == pytest.approx((1, 1), abs=1e-12)
    assert score.coverage["0.7"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_c_five_rows_an_image_and_nothing_shared(seed):
    """No discovery, |held out| < .005; row by row, nearly every feature would be one."""
    codes, images = captioned(4000, 5, seed)
    (A, B), groups = sides(codes, images)
    score = trust.score(evidence(Held([A], [B]), groups).forward["last_layer"], groups)
    assert score.discovered == 0
    assert abs(score.held_out) < 0.005
    (A, B), rows = sides(codes)
    by_row = trust.score(evidence(Held([A], [B]), rows).forward["last_layer"], rows)
    assert by_row.discovered > 0.9
    assert by_row.held_out > 0.02


@pytest.mark.slow
def test_d_the_interval_covers_the_populations_value():
    """Half is shared; 100 draws of 4,000 rows against 300,000: at least 90."""
    many = world(SMALL._replace(n_rows=300_000), 0.5, 1, rows_seed=1000)
    (A, B), _ = sides([many.A, many.B])
    found = matched(A, B)[0]
    population = (held_out(found, A.total, A.counted) + weighted(found.rho[0], A.total)) / 2
    made = [world(SMALL, 0.5, 1, rows_seed=seed) for seed in range(100)]
    assert sum(low <= population <= high for low, high in (interval([one.A, one.B]) for one in made)) >= 90


HIGH = {"noise_A": "high", "noise_B": "high"}
FDR_SETTINGS = [
    (Setting(), 0.3),
    (Setting(**HIGH, zipf_A=1.3, zipf_B=1.3), 0.3),
    (Setting(n_rows=5000, **HIGH), 0.3),
    (Setting(n_rows=2000, **HIGH), 0.3),
    (Setting(n_rows=2000, zipf_A=1.3, zipf_B=1.3), 0.3),
    (Setting(n_rows=1000), 0.1),
]


def false_share(setting, share, seed):
    """The share of the discoveries that is false."""
    made = world(setting, share, seed)
    (A, B), groups = sides([made.A, made.B])
    chance: list[Shuffled] = [shuffled(A, B, permutation(groups, number))[0] for number in (0, 1)]
    found = discovered(Found(Facts.of(A.moments, A.min_active), matched(A, B)[0], chance))
    return (found & ~made.shared_A).sum() / max(found.sum(), 1)


@pytest.mark.slow
def test_e_few_discoveries_are_false():
    """A mean of at most .07 over six settings of eight worlds each."""
    assert np.mean([false_share(*setting, seed) for setting in FDR_SETTINGS for seed in range(8)]) <= 0.07


@pytest.mark.parametrize("seed", range(3))
def test_f_present_and_absent_is_right_where_raw_delta_is_not(seed):
    """Noisier runs in H: at most a tenth of "present, absent" is false, and most of Delta > 0."""
    found = sharedness(seed, noise_H="high")
    best = np.array([one.rank == 0 for one in found.status])
    assert (best & ~found.true).sum() <= 0.1 * best.sum()
    assert (best & found.true).sum() >= 0.8 * found.true.sum()
    assert ((found.delta > 0) & ~found.true).sum() >= 0.5 * (found.delta > 0).sum()


@pytest.mark.parametrize("cell", [("base", 0.0), ("N 2000", 0.0), ("base", 0.5), ("split", 0.5)])
def test_h_some_worlds_of_the_planted_grid(cell):
    row = planted.measure(*cell, seed=0)
    for found, allowed in planted.targets([row]).values():
        assert found <= allowed


@pytest.mark.slow
def test_h_all_worlds_of_the_planted_grid():
    for found, allowed in planted.targets(planted.grid()).values():
        assert found <= allowed
