"""Pearson and the scores against numpy float64, and against numbers worked out by hand."""

import numpy as np
import pytest
import scipy.sparse
from oracles import pearson as oracle

from comparing import dense, draws, pearson
from comparing.codes import Codes
from comparing.pearson import Sums, correlation_matrix, max_correlations
from plumbing import threads


def topk(rng, n_rows, n_features, k, shift=0.0):
    """Codes with k entries a row whose features' frequencies follow a power law; dense float32."""
    rank = np.log(np.arange(1, n_features + 1)) + shift * rng.standard_normal(n_features)
    chosen = np.argsort(rank + rng.gumbel(size=(n_rows, n_features)), axis=1)[:, :k]
    codes = np.zeros((n_rows, n_features), np.float32)
    np.put_along_axis(codes, chosen, rng.exponential(size=(n_rows, k)).astype(np.float32) + 0.1, axis=1)
    return codes


def data(name):
    """A pair of arrays of a kind, float32 [700, 40] and [700, 30], with one signal in common."""
    rng = np.random.default_rng(7)
    x, y = topk(rng, 700, 40, 4), topk(rng, 700, 30, 5)
    common = rng.random((700, 1)) < 0.2
    y[:, :10] += (common | (x[:, :10] > 0)).astype(np.float32)
    if name == "dense":
        x, y = x + rng.random(x.shape, np.float32), y + rng.random(y.shape, np.float32)
    if name == "large_mean":
        x, y = (100 * side.std(axis=0) + side for side in (x, y))
    if name == "two_values":  # rounding errors of a float32 product all point the same way here
        x, y = 0.7 + 0.1 * (x > 0), 0.3 + 0.1 * (y > 0)
    if name == "constant_and_empty":
        x[:, 0], x[:, 1], y[:, 3], y[:, 4] = 0.1, 0, 0, 1 / 3
    if name == "single_row":
        x, y = x[:1], y[:1]
    if name == "no_rows":
        x, y = x[:0], y[:0]
    if name == "one_active_row":
        x[:, 2], y[:, 5] = 0, 0
        x[11, 2], y[11, 5] = 3, 4
    return x.astype(np.float32), y.astype(np.float32)


# How far r may be from float64: dense codes, as --activation relu records them, are multiplied in float32.
FAR = {"dense": 1e-5, "large_mean": 1e-5, "two_values": 1e-5}

KINDS = ["sparse", "dense", "large_mean", "two_values", "constant_and_empty", "single_row", "one_active_row"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", ["sparse", "dense", "mixed"])
def test_pearson_is_that_of_float64(kind, held):
    x, y = data(kind)
    expected = oracle(x, y)
    source = x if held == "dense" else scipy.sparse.csr_array(x)
    target = scipy.sparse.csr_array(y) if held == "sparse" else y
    np.testing.assert_allclose(correlation_matrix(source, target), expected, atol=FAR.get(kind, 1e-6))
    forward, backward = max_correlations(source, target)
    np.testing.assert_allclose(forward.rho, expected.max(1), atol=FAR.get(kind, 1e-6))
    np.testing.assert_allclose(backward.rho, expected.max(0), atol=FAR.get(kind, 1e-6))
    picked = np.arange(len(forward.match))
    np.testing.assert_allclose(expected[picked, forward.match], expected.max(1), atol=FAR.get(kind, 1e-6))
    np.testing.assert_allclose(
        expected[backward.match, np.arange(len(backward.match))], expected.max(0), atol=FAR.get(kind, 1e-6)
    )


@pytest.mark.parametrize("gemm", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same(kind, gemm, monkeypatch):
    monkeypatch.setattr(pearson, "prefers_gemm", lambda source, target: gemm)
    x, y = (scipy.sparse.csr_array(side) for side in data(kind))
    expected = oracle(x.toarray(), y.toarray())
    np.testing.assert_allclose(max_correlations(x, y)[0].rho, expected.max(1), atol=FAR.get(kind, 1e-6))
    np.testing.assert_allclose(correlation_matrix(x, y), expected, atol=FAR.get(kind, 1e-6))


def test_a_matrix_product_is_chosen_for_dense_data_and_the_sparse_loop_for_topk():
    rng = np.random.default_rng(0)
    codes, dense = Codes(scipy.sparse.csr_array(topk(rng, 300, 600, 8))), Codes(rng.random((300, 600)))
    assert pearson.prefers_gemm(dense, dense)
    assert not pearson.prefers_gemm(codes, codes)


def test_features_never_active_together_have_a_negative_maximum():
    x = np.array([[1], [1], [0], [0], [0]], np.float32)
    y = np.array([[0, 0], [0, 0], [1, 0], [0, 2], [1, 2]], np.float32)
    found, _ = max_correlations(scipy.sparse.csr_array(x), scipy.sparse.csr_array(y))
    np.testing.assert_allclose(
        found.rho, [-2 / 3], atol=1e-12
    )  # cov -4/25, variances 6/25 and 6/25 (times 2²)
    assert found.match.tolist() == [0]


def test_the_first_of_equal_partners_matches():
    x = scipy.sparse.csr_array(np.array([[1.0], [0], [0]]))
    y = scipy.sparse.csr_array(np.array([[0.0, 1, 2], [1, 0, 0], [0, 0, 0]]))
    forward, backward = max_correlations(x, y)
    assert forward.match.tolist() == [1]
    assert backward.match.tolist() == [0, 0, 0]


def test_nan_is_refused():
    x = scipy.sparse.csr_array(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="NaN"):
        max_correlations(x, x)


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError, match="rows"):
        max_correlations(np.ones((3, 2)), np.ones((4, 2)))


# --------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("gemm", [True, False])
@pytest.mark.parametrize("step", [7, 64, 256, 700])
def test_sums_over_chunks_and_shards_are_those_of_the_whole(step, gemm, monkeypatch):
    monkeypatch.setattr(pearson, "prefers_gemm", lambda source, target: gemm)
    x, y = (scipy.sparse.csr_array(side) for side in data("large_mean"))
    whole = correlation_matrix(x, y)
    chunks, shards = Sums(40, 30), [Sums(40, 30), Sums(40, 30)]
    for start in range(0, 700, step):
        for sums in (chunks, shards[start >= 350]):
            sums.add(x[start : start + step], y[start : start + step])
    np.testing.assert_allclose(chunks.correlations(), whole, atol=FAR["large_mean"] if gemm else 1e-9)
    if step < 350:
        others = []
        shards[1].add_up(lambda array, how: others.append(array.copy()))
        shards[0].add_up(lambda array, how: COMBINED[how](array, others.pop(0), out=array))
        np.testing.assert_allclose(shards[0].correlations(), whole, atol=FAR["large_mean"] if gemm else 1e-9)


COMBINED = {"SUM": np.add, "MIN": np.minimum, "MAX": np.maximum}  # what another process adds


@pytest.mark.parametrize("gemm", [True, False])
def test_slices_of_the_source_make_up_the_whole(gemm, monkeypatch):
    monkeypatch.setattr(pearson, "prefers_gemm", lambda source, target: gemm)
    x, y = (scipy.sparse.csr_array(side) for side in data("sparse"))
    forward, backward = max_correlations(x, y)
    parts = []
    for first in range(0, 40, 16):
        sums = Sums(40, 30, slice(first, first + 16))
        sums.add(x, y)
        parts.append(sums.maxima())
    np.testing.assert_allclose(np.concatenate([part[0].rho for part in parts]), forward.rho, atol=1e-12)
    merged = parts[0][1]
    for part in parts[1:]:
        merged.merge(part[1])
    np.testing.assert_allclose(merged.rho, backward.rho, atol=1e-12)
    assert merged.match.tolist() == backward.match.tolist()


def test_row_order_column_order_and_positive_scale_do_not_matter():
    x, y = data("sparse")
    rng = np.random.default_rng(5)
    rho = max_correlations(scipy.sparse.csr_array(x), scipy.sparse.csr_array(y))[0].rho
    rows, columns = rng.permutation(700), rng.permutation(30)
    moved, _ = max_correlations(scipy.sparse.csr_array(x[rows]), scipy.sparse.csr_array(y[rows][:, columns]))
    np.testing.assert_allclose(moved.rho, rho, atol=1e-12)
    scaled = x * rng.uniform(0.01, 100, 40), y * rng.uniform(0.01, 100, 30)
    np.testing.assert_allclose(max_correlations(*map(scipy.sparse.csr_array, scaled))[0].rho, rho, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(count, monkeypatch):
    x, y = (scipy.sparse.csr_array(side) for side in data("sparse"))
    monkeypatch.setattr(threads, "threads", lambda: 1)
    expected = max_correlations(x, y)
    monkeypatch.setattr(threads, "threads", lambda: count)
    for found, one in zip(max_correlations(x, y), expected, strict=True):
        assert found.rho.tolist() == one.rho.tolist()
        assert found.match.tolist() == one.match.tolist()


def test_more_features_than_16_bits_count():
    y = scipy.sparse.csr_array(([1.0, 2.0], ([0, 2], [70_000, 3])), shape=(4, 70_001))
    x = scipy.sparse.csr_array(np.array([[1.0], [0], [0], [0]]))
    found, _ = max_correlations(x, y)
    assert found.match.tolist() == [70_000]
    np.testing.assert_allclose(found.rho, [1.0])


def test_recorded_rarely_and_hugely_the_sums_keep_1e_5():
    """One activation of 1e4 on top of 1e-4 everywhere: what a float32 sum would forget."""
    rng = np.random.default_rng(1)
    x = (1e-4 * rng.random((50_000, 2))).astype(np.float32)
    x[17] = 1e4
    y = np.repeat(x[:, :1], 2, axis=1)
    np.testing.assert_allclose(correlation_matrix(scipy.sparse.csr_array(x), y), oracle(x, y), atol=1e-5)


@pytest.mark.gpu
def test_cuda_gives_the_same():
    if dense.cuda() is None:
        pytest.skip("needs a CUDA device")
    x, y = data("dense")
    np.testing.assert_allclose(correlation_matrix(x, y), oracle(x, y), atol=FAR["dense"])


@pytest.mark.parametrize("others", ["highest", "high", "medium"])
def test_a_product_is_of_whole_float32_whatever_a_train_script_has_set(others, monkeypatch):
    import torch

    seen = []
    monkeypatch.setattr(dense, "cuda", lambda: torch)
    monkeypatch.setattr(
        torch.Tensor, "cuda", lambda self: seen.append(torch.get_float32_matmul_precision()) or self
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(others)
    try:
        x, y = data("dense")
        np.testing.assert_allclose(max_correlations(x, y)[0].rho, oracle(x, y).max(1), atol=FAR["dense"])
        assert torch.get_float32_matmul_precision() == others
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen.count("highest") >= len(seen) / 2 > 0
    assert all(setting in ("highest", others) for setting in seen)


# ------------------------------------------------------------------------------------- more than memory


def cut(matrix, step):
    """A matrix in blocks of rows."""
    return (matrix[i : i + step] for i in range(0, matrix.shape[0], step))


@pytest.mark.parametrize("memory", [1, 30 * 8 * 7, 1 << 30])
def test_streamed_maxima_are_those_of_the_whole(memory, monkeypatch):
    x, y = (scipy.sparse.csr_array(side) for side in data("sparse"))
    forward, backward = max_correlations(x, y)
    monkeypatch.setattr(draws, "JOINED_ENTRIES", 1000)
    found = pearson.streamed_maxima(lambda: (cut(x, 64), cut(y, 150)), memory)
    for streamed, whole in zip(found, (forward, backward), strict=True):
        np.testing.assert_allclose(streamed.rho, whole.rho, atol=1e-12)
        assert streamed.match.tolist() == whole.match.tolist()


@pytest.mark.parametrize("kind", ["dense", "two_values", "constant_and_empty", "large_mean"])
@pytest.mark.parametrize("rows_of_a_product", [50, 4096])
def test_dense_maxima_are_those_of_float64(kind, rows_of_a_product, monkeypatch):
    """Blocks of other rows on each side, slices of seven source features, and partners nearly as good."""
    monkeypatch.setattr(dense, "DENSE_ROWS", rows_of_a_product)
    monkeypatch.setattr(pearson, "prefers_gemm", lambda source, target: True)
    x, y = data(kind)
    y[:, 20:] = y[:, 5:6] + 1e-4 * y[:, 20:]  # ties, nearly
    expected = oracle(x, y)
    read = lambda: (cut(scipy.sparse.csr_array(x), 64), cut(y, 150))  # noqa: E731
    forward, backward = pearson.streamed_maxima(read, 30 * 8 * 7)
    np.testing.assert_allclose(forward.rho, expected.max(1), atol=1e-5)
    np.testing.assert_allclose(backward.rho, expected.max(0), atol=1e-5)
    np.testing.assert_allclose(expected[np.arange(40), forward.match], expected.max(1), atol=1e-5)
    np.testing.assert_allclose(expected[backward.match, np.arange(30)], expected.max(0), atol=1e-5)


def test_a_product_of_many_source_features_goes_block_by_block(monkeypatch):
    monkeypatch.setattr(dense, "PRODUCT_FEATURES", 7)
    x, y = data("dense")
    np.testing.assert_allclose(correlation_matrix(x, y), oracle(x, y), atol=1e-5)


def test_small_sparse_blocks_are_joined_in_order(monkeypatch):
    monkeypatch.setattr(draws, "JOINED_ENTRIES", 10)
    rows = scipy.sparse.csr_array(np.arange(1.0, 9)[:, None])
    blocks = list(draws.joined(rows[i : i + 3] for i in range(0, 8, 3)))
    assert [block.shape[0] for block in blocks] == [8]
    monkeypatch.setattr(draws, "JOINED_ENTRIES", 5)
    blocks = list(draws.joined(rows[i : i + 2] for i in range(0, 8, 2)))
    assert [block.shape[0] for block in blocks] == [6, 2]
    assert np.concatenate([block.toarray() for block in blocks]).ravel().tolist() == list(range(1, 9))


def test_aligned_blocks_hold_the_same_rows():
    rows = np.arange(10)[:, None]
    cuts = list(draws.aligned([rows[:3], rows[3:3], rows[3:]], [rows[:5], rows[5:6], rows[6:]]))
    assert [len(x) for x, _ in cuts] == [3, 2, 1, 4]
    assert all((x == y).all() for x, y in cuts)
