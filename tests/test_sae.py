"""The SAE against codes, gradients and files worked out by other means."""

import threading

import numpy as np
import pytest
import torch

import sae as sae_module
import screening
from plumbing.errors import UserError
from plumbing.threads import share_out
from sae import TENSORS, TopKSAE
from sae_kernels import SumByLatent
from screening import rounded, screened
from topk import keep_largest, largest, linear


def random_sae(d_in=12, d_sae=40, k=4, seed=0, dtype=torch.float32):
    """An SAE whose encoder is not its decoder's transpose and whose biases are not zero."""
    sae = TopKSAE(d_in, d_sae, k, seed).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter, scale in ((sae.W_enc, 0.3), (sae.b_enc, 0.1), (sae.b_dec, 2.0)):
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return sae


def tokens(n, d_in, seed=0, dtype=torch.float32):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)).to(dtype) * 3 + 1


def gradients(sae):
    return {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}


def assert_close_gradients(found, expected, relative):
    for name, gradient in expected.items():
        worst = (found[name] - gradient).abs().max()
        assert worst <= relative * gradient.abs().max(), (name, worst, gradient.abs().max())


def fast_step(sae, x, dead=None, **options):
    """The step that does without dense codes; sets every gradient."""
    step, found = sae.gradients(x, dead, **options)
    sae.set_gradients(found)
    return step


def plain_and_fast(sae, x, dead=None, **options):
    """Both steps with their gradients."""
    sae.zero_grad()
    plain = sae.loss(x, dead, **options)
    plain.loss.backward()
    expected = gradients(sae)
    fast = fast_step(sae, x, dead, **options)
    return plain, expected, fast, gradients(sae)


# ------------------------------------------------------------------------------------------------ codes


def test_an_identity_encoder_keeps_the_k_largest_positive_entries():
    sae = TopKSAE(4, 4, 2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.W_dec.copy_(torch.eye(4))
        sae.b_dec.copy_(torch.tensor([1.0, 0, 0, 0]))
        sae.b_enc.copy_(torch.tensor([0, 0, 0, 0.5]))
    x = torch.tensor([[1.5, 2, 3, 4], [9, -1, -2, -3], [0, -1, -1, -1]])
    code = torch.tensor([[0, 0, 3, 4.5], [8, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.equal(sae.encode(x), code)
    assert torch.equal(sae(x), code + torch.tensor([1.0, 0, 0, 0]))
    values, latents = sae.encode_topk(x)
    assert torch.equal(values, torch.tensor([[4.5, 3], [8, 0], [0, 0]]))
    assert latents[0].tolist() == [3, 2]
    assert latents[1, 0] == 0


def test_codes_are_those_of_numpy_in_float64():
    sae, x = random_sae(), tokens(50, 12)
    W_enc, b_enc, W_dec, b_dec = (getattr(sae, name).detach().double().numpy() for name in TENSORS)
    pre_acts = (x.double().numpy() - b_dec) @ W_enc + b_enc
    expected = np.where(pre_acts >= np.sort(pre_acts, 1)[:, -4, None], np.maximum(pre_acts, 0), 0)
    np.testing.assert_allclose(sae.encode(x).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(sae(x).detach(), expected @ W_dec + b_dec, atol=1e-5)


@pytest.mark.parametrize(("d_sae", "k"), [(1, 1), (63, 5), (64, 64), (65, 1), (700, 32), (700, 300)])
def test_the_largest_are_those_of_a_full_sort(d_sae, k):
    pre_acts = torch.randn(30, d_sae, generator=torch.Generator().manual_seed(d_sae))
    pre_acts[0] = -pre_acts[0].abs()
    pre_acts[1] = 0
    pre_acts[2] = -0.0
    values, latents = largest(pre_acts, k)
    assert all(len(set(row)) == k for row in latents.tolist())
    assert torch.equal(values, pre_acts.gather(1, latents).relu())
    expected = pre_acts.sort(1, descending=True).values[:, :k].relu()
    assert torch.equal(values.sort(1, descending=True).values, expected)


def test_ties_go_to_the_lower_latent():
    pre_acts = torch.tensor([[1.0, 3, 2, 3, 2, 2, 0]]).repeat(3, 1)
    assert largest(pre_acts, 4)[1].tolist() == [[1, 3, 2, 4]] * 3


def tokens_and_latents(d_in=64, d_sae=700, n=90):
    """Tokens and latents' rows of all kinds; the last two tokens are not finite."""
    random = torch.Generator().manual_seed(3)
    x, rows = torch.randn(n, d_in, generator=random), torch.randn(d_sae, d_in, generator=random)
    x[:9] *= 1e4  # of very different sizes
    x[9:18, 0] = 300.0  # one dimension outweighs all others
    rows[::7] *= 30
    x[-3], x[-2, 5], x[-1, 5] = 0.0, float("inf"), float("nan")
    return x, rows, torch.randn(d_sae, generator=random)


@pytest.fixture
def by_product(monkeypatch):
    """The numbers of tokens that the float32 product has been made for."""
    counts = []
    monkeypatch.setattr(screening, "linear", lambda *args: counts.append(len(args[0])) or linear(*args))
    return counts


@pytest.mark.parametrize("block", [7, 1024])
def test_screened_codes_are_those_of_the_whole_product(block, by_product, monkeypatch):
    monkeypatch.setattr(screening, "SCREENED_TOKENS", block)
    x, rows, bias = tokens_and_latents()
    values, latents = screened(x, rows, bias, 5)
    assert by_product == [2]  # those that are not finite
    expected = (x.double() @ rows.double().T + bias)[:-2].topk(5)
    torch.testing.assert_close(values[:-2].double(), expected.values.relu(), rtol=1e-5, atol=1e-3)
    assert torch.equal(latents[:-2].sort(1).values, expected.indices.sort(1).values)


def test_entries_that_bfloat16_makes_negative_are_not_ruled_out():
    """The k-th largest is just above zero, closer than bfloat16 tells, and most chunks have no positive entry."""
    x, rows, _ = tokens_and_latents()
    products, below_zero = x[:80].double() @ rows.double().T, 0
    for token, exact in enumerate(products):
        bias = (1e-4 * exact.abs().max() - exact.topk(5).values[-1]).float().expand(700)
        expected = exact.topk(5).indices
        rounded_ones = x[token].bfloat16().double() @ rows.bfloat16().double().T
        below_zero += bool((rounded_ones[expected] + bias[expected] < 0).any())
        found = screened(x[token : token + 1], rows, bias.contiguous(), 5)[1]
        assert set(found[0].tolist()) == set(expected.tolist())
    assert below_zero > 10


def test_tokens_that_screening_cannot_help_take_the_product(by_product):
    x, rows, bias = (part[:n] for part, n in zip(tokens_and_latents(), (60, 100, 100), strict=True))
    none_positive = screened(x, rows, bias - 1e7, 5)
    all_equal = screened(x, rows[:1].expand(100, -1).contiguous(), bias * 0 + 1e7, 5)
    assert by_product == [60, 60]
    assert not none_positive[0].any()
    assert all(len(set(row)) == 5 for row in none_positive[1].tolist())
    assert all_equal[1].tolist() == [[0, 1, 2, 3, 4]] * 60


@pytest.mark.parametrize("rounded_ones", ["weights", "tokens"])
def test_what_bfloat16_would_choose_wrongly_is_chosen_rightly(rounded_ones):
    """Latent 7 meets numbers that are rounded up to 1 + 2^-7, and 3 those rounded down to 1; one of 1.02 decides."""
    x, rows, below, above = torch.ones(1, 16), torch.zeros(64, 16), 1 + 2**-8 - 2**-12, 1 + 2**-8 + 2**-12
    if rounded_ones == "weights":
        rows[3], rows[7] = below, above
        rows[3, 0] += 0.02
    else:
        rows[3, :8], rows[7, 8:], x[0, :8], x[0, 8:] = 1, 1, below, above
        x[0, 0] += 0.02
    assert (x.bfloat16() @ rows.bfloat16().T).argmax() == 7
    assert (x.double() @ rows.double().T).argmax() == 3
    assert screened(x, rows, torch.zeros(64), 1)[1].tolist() == [[3]]


def test_rounding_is_torchs_and_its_loss_is_known():
    x = tokens_and_latents()[0][:-2]
    rows, norms, lost = rounded(x, torch.empty_like(x, dtype=torch.bfloat16))
    assert torch.equal(rows, x.bfloat16())
    torch.testing.assert_close(norms, x.norm(dim=1))
    torch.testing.assert_close(lost, (x.double() - rows.double()).norm(dim=1).float())


def test_the_sparse_and_the_dense_code_agree_over_any_leading_dimensions():
    sae, x = random_sae(), tokens(30, 12).view(2, 3, 5, 12)
    values, latents = sae.encode_topk(x)
    dense = sae.encode(x)
    assert torch.equal(dense.gather(-1, latents), values)
    assert (dense > 0).sum() == (values > 0).sum()


def test_a_seed_gives_one_unit_norm_tied_start_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sae = TopKSAE(16, 64, 4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert torch.equal(sae.W_dec, TopKSAE(16, 64, 4, seed=3).W_dec)
    assert not torch.equal(sae.W_dec, TopKSAE(16, 64, 4, seed=4).W_dec)


@pytest.mark.parametrize("k", [0, 9])
def test_k_outside_the_latents_is_refused(k):
    with pytest.raises(UserError, match=rf"^{k} active latents of d_sae = 8: give a --top_k from 1 to 8$"):
        TopKSAE(4, 8, k)


# --------------------------------------------------------------------------------------- loss, gradients


def test_the_gradients_of_the_loss_are_its_finite_differences():
    sae, x = random_sae(4, 9, 2, dtype=torch.float64), tokens(7, 4, dtype=torch.float64)
    sae.loss(x).loss.backward()
    for name, parameter in sae.named_parameters():
        differences = finite_differences(lambda: sae.loss(x).loss, parameter)
        torch.testing.assert_close(parameter.grad, differences, rtol=1e-6, atol=1e-8, msg=name)


def finite_differences(function, parameter, step=1e-6):
    differences = torch.zeros_like(parameter)
    with torch.no_grad():
        for place in np.ndindex(*parameter.shape):
            middle = parameter[place].item()
            parameter[place] = middle + step
            above = function()
            parameter[place] = middle - step
            differences[place] = (above - function()) / (2 * step)
            parameter[place] = middle
    return differences


def test_the_loss_is_a_mean_over_tokens_and_dimensions():
    sae, x = random_sae(), tokens(20, 12)
    once, twice = sae.loss(x), sae.loss(torch.cat([x, x]))
    torch.testing.assert_close(once.loss, (x - sae(x)).square().mean())
    torch.testing.assert_close(twice.loss, once.loss)
    torch.testing.assert_close(twice.squared_error, 2 * once.squared_error)
    assert torch.equal(once.fired, (sae.encode(x) > 0).sum(0))
    dead = torch.arange(40) < 10
    torch.testing.assert_close(sae.loss(torch.cat([x, x]), dead).loss, sae.loss(x, dead).loss)


def dead_latents(kind, d_sae):
    if kind == "no mask":
        return None
    chosen = {"none": 0.0, "some": 0.3, "all": 1.0}[kind]
    return torch.rand(d_sae, generator=torch.Generator().manual_seed(7)) < chosen


@pytest.mark.parametrize("kind", ["no mask", "none", "some", "all"])
@pytest.mark.parametrize(
    ("d_in", "d_sae", "k", "n"),
    [(12, 40, 4, 60), (8, 16, 16, 20), (8, 16, 1, 5), (96, 384, 16, 300), (5, 7, 3, 1)],
)
def test_the_fast_step_has_the_gradients_of_autograd(d_in, d_sae, k, n, kind):
    sae, x = random_sae(d_in, d_sae, k), tokens(n, d_in)
    plain, expected, fast, found = plain_and_fast(sae, x, dead_latents(kind, d_sae), k_aux=5)
    assert_close_gradients(found, expected, 1e-5)
    torch.testing.assert_close(fast.loss, plain.loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(fast.squared_error, plain.squared_error, rtol=1e-5, atol=0)
    assert torch.equal(fast.fired, plain.fired)


def test_the_fast_step_agrees_with_autograd_at_ties_and_on_rows_without_a_code():
    sae = TopKSAE(6, 20, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # whole numbers are exact, and often equal
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator).float())
    x = torch.randint(-1, 2, (40, 6), generator=generator).float()
    x[::5] = 0
    _, expected, fast, found = plain_and_fast(sae, x, dead_latents("some", 20), k_aux=2)
    tied = sae.pre_acts(x).sort(1, descending=True).values
    assert ((tied[:, 2] == tied[:, 3]) & (tied[:, 2] > 0)).any()
    assert not (sae.encode(x) > 0).any(1)[::5].any()
    assert fast.fired.sum() > 0
    assert_close_gradients(found, expected, 1e-5)


@pytest.mark.parametrize("kind", ["no mask", "some", "none"])
@pytest.mark.parametrize("most_dead", [40, 20])
def test_the_path_of_other_devices_has_the_gradients_of_autograd(kind, most_dead):
    """Float64 takes the operations that CUDA takes; AuxK is made to compute with many latents, as there."""
    sae, x = random_sae(dtype=torch.float64), tokens(60, 12, dtype=torch.float64)
    dead = dead_latents(kind, 40)
    assert dead is None or dead.sum() <= 20
    plain, expected, _, _ = plain_and_fast(sae, x, dead, k_aux=5)
    fast = fast_step(sae, x, dead, k_aux=5, most_dead=most_dead)
    found = gradients(sae)
    assert_close_gradients(found, expected, 1e-12)
    torch.testing.assert_close(fast.loss, plain.loss.detach())
    sae.normalize_decoder()
    sae.remove_parallel_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-12


def test_more_tokens_than_a_block_make_no_difference(monkeypatch):
    sae, x = random_sae(), tokens(60, 12)
    whole = fast_step(sae, x)
    expected = gradients(sae)
    monkeypatch.setattr(screening, "BLOCK_TOKENS", 7)
    assert torch.equal(fast_step(sae, x).fired, whole.fired)
    assert_close_gradients(gradients(sae), expected, 1e-6)


def test_the_shares_of_two_processes_sum_to_the_whole_batch(monkeypatch):
    sae, x, dead = random_sae(), tokens(50, 12), dead_latents("some", 40)
    whole = fast_step(sae, x, dead)
    expected = gradients(sae)
    total = torch.stack([torch.tensor(50.0), whole.squared_error])
    monkeypatch.setattr(sae_module, "add_up", lambda share: share.copy_(total))
    first, found = fast_step(sae, x[:20], dead, together=True), gradients(sae)
    second = fast_step(sae, x[20:], dead, together=True)
    assert_close_gradients({n: found[n] + g for n, g in gradients(sae).items()}, expected, 1e-5)
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    assert torch.equal(first.fired + second.fired, whole.fired)


def test_bfloat16_is_close_and_leaves_float32_gradients():
    sae, x = random_sae(96, 384, 16), tokens(300, 96)
    fast_step(sae, x)
    expected = gradients(sae)
    fast_step(sae, x, precision="bfloat16")
    for name, gradient in gradients(sae).items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.98, name


# ------------------------------------------------------------------------------------------------- AuxK


def small_auxk():
    """Latent 0 fires with 2, latent 1 is dead with 1 and half a decoder row; the error is (0, 1)."""
    sae = TopKSAE(2, 2, 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 0.5]]))
        sae.b_dec.copy_(torch.tensor([10.0, 0]))
    return sae, torch.tensor([[12.0, 1]]), torch.tensor([False, True])


@pytest.mark.parametrize("step", ["plain", "fast"])
def test_auxk_by_hand(step):
    """ehat = (0, .5) without b_dec, so that the loss is 1/2 + alpha/4; the dead latent's whole row learns."""
    sae, x, dead = small_auxk()
    if step == "plain":
        done = sae.loss(x, dead, auxk_alpha=0.5)
        done.loss.backward()
    else:
        done = fast_step(sae, x, dead, auxk_alpha=0.5)
    assert done.loss.item() == 0.5 + 0.5 / 4
    assert done.fired.tolist() == [1, 0]
    # main: error (0, 1), slope -2/2; AuxK: -2 alpha (0, .5), and its product with the decoder row -alpha / 2
    assert sae.W_dec.grad.tolist() == [[0, -2], [0, -0.5]]
    assert sae.W_enc_rows.grad.tolist() == [[0, 0], [-0.5, -0.25]]
    assert sae.b_enc.grad.tolist() == [0, -0.25]
    assert sae.b_dec.grad.tolist() == [0, -1 + 0.25]


def test_auxk_reaches_the_dead_latents_alone_and_by_its_own_finite_differences():
    """The error does not depend on a latent that never fires, so that AuxK's slope there is the loss's."""
    sae, x = random_sae(4, 12, 2, dtype=torch.float64), tokens(6, 4, dtype=torch.float64)
    dead = sae.loss(x).fired == 0
    assert 2 <= dead.sum() < 12
    sae.loss(x).loss.backward()
    without = gradients(sae)
    sae.zero_grad()
    sae.loss(x, dead).loss.backward()
    for name, parameter in sae.named_parameters():
        if name == "b_dec":
            continue
        differences = finite_differences(lambda: sae.loss(x, dead).loss, parameter)
        rows, before = parameter.grad, without[name]
        torch.testing.assert_close(rows[dead], differences[dead], rtol=1e-5, atol=1e-8, msg=name)
        assert rows[dead].abs().max() > 0, name
        assert torch.equal(rows[~dead], before[~dead]), name


def test_auxk_uses_the_k_aux_largest_dead_latents():
    pre_acts = torch.tensor([[5.0, 4, 3, -2]])
    assert keep_largest(pre_acts, 2).tolist() == [[5, 4, 0, 0]]
    assert keep_largest(pre_acts, 9).tolist() == [[5, 4, 3, 0]]
    sae, x, dead = random_sae(8, 32, 2), tokens(50, 8), torch.ones(32, dtype=torch.bool)
    default, four, eight = (sae.loss(x, dead, k_aux=k_aux).loss for k_aux in (None, 4, 8))
    assert default == four  # half of d_in
    assert four != eight


@pytest.mark.parametrize("step", [TopKSAE.loss, fast_step])
def test_auxk_of_a_perfect_reconstruction_is_finite(step):
    sae = TopKSAE(3, 6, 2)
    x, dead = sae.b_dec.detach().expand(4, 3), torch.ones(6, dtype=torch.bool)
    assert step(sae, x, dead).loss.item() == 0


# --------------------------------------------------------------------------------------------- training


def test_the_parallel_part_alone_is_removed_from_the_decoder_gradient():
    sae, x = random_sae(96, 384, 16), tokens(300, 96)
    sae.normalize_decoder()
    fast_step(sae, x)
    before, rows = sae.W_dec.grad.double(), sae.W_dec.detach().double()
    others = gradients(sae)
    sae.remove_parallel_gradient()
    expected = before - (before * rows).sum(1, keepdim=True) * rows
    torch.testing.assert_close(
        sae.W_dec.grad.double(), expected, rtol=1e-4, atol=1e-6 * before.abs().max().item()
    )
    assert all(torch.equal(others[name], gradients(sae)[name]) for name in ("W_enc_rows", "b_enc", "b_dec"))


def test_normalising_keeps_the_directions_of_the_decoder():
    sae = random_sae()
    directions = sae.W_dec.detach().clone()
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 3, 40)[:, None]
    sae.normalize_decoder()
    torch.testing.assert_close(sae.W_dec.detach(), directions)


def test_a_step_is_bitwise_repeatable():
    sae, x, dead = random_sae(96, 384, 16), tokens(300, 96), dead_latents("some", 384)
    first = fast_step(sae, x, dead), gradients(sae)
    second = fast_step(sae, x, dead), gradients(sae)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_rows", [0, 1, 32, 33, 1000])
def test_every_row_is_handed_out_once_whatever_the_threads(three_threads, n_rows):
    counts, twice = np.zeros(n_rows), np.arange(2 * n_rows).reshape(n_rows, 2)
    seen = []

    def kernel(counts, twice, shared):
        counts += 1
        seen.append((len(counts), twice.copy(), shared))

    share_out(kernel, counts, twice, shared=("shared",))
    assert (counts == 1).all()
    assert sum(n for n, _, _ in seen) == n_rows
    assert all(n <= 32 and word == "shared" for n, _, word in seen)
    rows = np.concatenate([rows for _, rows, _ in seen] or [twice])
    np.testing.assert_array_equal(rows[rows[:, 0].argsort()], twice)


def test_a_helper_that_fails_is_heard_of(three_threads):
    caller, sleeping = threading.get_ident(), threading.Event()

    def kernel(rows):
        if threading.get_ident() != caller:
            sleeping.set()
            raise ZeroDivisionError
        sleeping.wait(10)  # until a helper has had a share

    with pytest.raises(ZeroDivisionError):
        share_out(kernel, np.zeros(100))


def test_a_step_is_the_same_on_one_thread_and_on_three(three_threads):
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for n_threads in (3, 1):
        torch.set_num_threads(n_threads)
        sae = TopKSAE(16, 64, 4)
        fast_step(sae, x)
        sae.remove_parallel_gradient()
        gradients.append([parameter.grad for parameter in sae.parameters()])
    for three, one in zip(*gradients, strict=True):
        torch.testing.assert_close(three, one)


def test_pairs_are_ordered_by_latent_and_stay_in_their_tokens_order():
    latents = torch.randint(0, 40, (300, 7), generator=torch.Generator().manual_seed(0))
    in_order, order = latents.flatten().sort(stable=True)
    found = SumByLatent(latents, 64)
    assert torch.equal(found.order, order)
    assert torch.equal(found.tokens, order // 7)
    assert torch.equal(found.starts, torch.searchsorted(in_order, torch.arange(64)))


def test_folding_a_standardiser_gives_the_sae_of_the_raw_activations():
    sae, x, mean, scale = random_sae(), tokens(30, 12), torch.linspace(-5, 5, 12), 2.5
    standard = (x - mean) / scale
    code, xhat = sae.encode(standard).detach(), sae(standard).detach()
    W_dec = sae.W_dec.detach().clone()
    sae.fold_standardizer(mean, scale)
    torch.testing.assert_close(sae.encode(x).detach(), scale * code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x).detach(), scale * xhat + mean, rtol=1e-4, atol=1e-4)
    assert torch.equal(sae.W_dec, W_dec)


# ------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["no mask", "none", "some", "all"])
def test_the_step_on_cuda_has_the_gradients_of_autograd_and_never_waits(kind):
    sae, x = random_sae(96, 384, 16).cuda(), tokens(300, 96).cuda()
    dead = dead_latents(kind, 384)
    dead = None if dead is None else dead.cuda()
    _, expected, _, found = plain_and_fast(sae, x, dead, k_aux=5)
    assert_close_gradients(found, expected, 1e-5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast_step(sae, x, dead, precision="bfloat16", most_dead=64)
        sae.remove_parallel_gradient()
        sae.normalize_decoder()
    finally:
        torch.cuda.set_sync_debug_mode("default")
