"""One SAE in training: its standardiser, its learning rate."""

import copy

import pytest
import torch

from plumbing import processes
from sae import TopKSAE
from training.trainer import RECIPES, LayerTrainer, Moments, default_lr


@pytest.mark.parametrize("batches", [1, 3, 10])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_standardised_tokens_have_mean_zero_and_mean_square_one(batches, offset):
    x = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + offset
    moments = Moments()
    for part in x.tensor_split(batches):
        moments.add(part)
    mean, scale, _ = moments.standardizer(RECIPES["ours"])
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-6, atol=1e-6)
    assert scale == pytest.approx(float((exact - exact.mean(0)).square().mean().sqrt()), rel=1e-6)


def test_the_originals_recipe_takes_activations_as_they_are():
    moments = Moments()
    moments.add(torch.ones(5, 3) * 7)
    mean, scale, _ = moments.standardizer(RECIPES["original"])
    assert (mean.tolist(), scale) == ([0.0, 0.0, 0.0], 1.0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_reported_fvu_is_about_the_mean_whatever_the_recipe(recipe):
    """About zero, far from which these tokens lie, that of the original's recipe would be next to nothing."""
    x, moments = torch.randn(64, 8, generator=torch.Generator().manual_seed(2)) + 50, Moments()
    moments.add(x)
    standard = moments.standardizer(RECIPES[recipe])
    sae, z = TopKSAE(8, 24, 2), standard(x)
    error, variance = (z - sae(z)).detach().square().sum(), (z - z.mean(0)).square().sum()
    trainer = LayerTrainer(sae, RECIPES[recipe], 10, 100.0, None, "float32", standard.center)
    trainer.step(z)
    assert trainer.report(1).fvu == pytest.approx(float(error / variance), rel=1e-3)


def test_tokens_that_are_all_the_same_are_only_centred():
    moments = Moments()
    moments.add(torch.ones(5, 3) * 7)
    assert moments.standardizer(RECIPES["ours"]).scale == 1.0


@pytest.mark.parametrize(
    ("recipe", "expected"), [("ours", [0.2, 1, 1, 1, 0.5, 0.05]), ("original", [1, 1, 1, 1, 1, 1])]
)
def test_the_learning_rate_rises_stays_and_falls(recipe, expected):
    trainer = LayerTrainer(TopKSAE(4, 8, 2), RECIPES[recipe], 100, 1000.0, None, "float32")
    factors = []
    for step in (0, 4, 50, 80, 90, 99):
        trainer.steps_done = step
        factors.append(trainer.schedule())
    assert factors == pytest.approx(expected, abs=0.06)


def test_a_gpu_makes_room_for_twice_the_dead_of_the_last_report(monkeypatch):
    """Here on the CPU: the room is what decides, and the dead that it has no room for are left out."""
    torch.manual_seed(0)
    trainer = LayerTrainer(TopKSAE(8, 600, 2), RECIPES["ours"], 100, 100.0, None, "float32")
    assert trainer.most_dead is None  # the CPU counts
    trainer.most_dead, rooms = 256, []
    step = TopKSAE.gradients
    monkeypatch.setattr(
        TopKSAE,
        "gradients",
        lambda *args, **named: rooms.append(named["most_dead"]) or step(*args, **named),
    )
    trainer.dead_after = 5
    for _ in range(3):
        trainer.step(torch.randn(4, 8))
    dead = trainer.report(3).dead_fraction * 600
    assert dead > 500
    trainer.step(torch.randn(4, 8))
    assert rooms == [256, 256, 256, 600]
    again = LayerTrainer(TopKSAE(8, 600, 2), RECIPES["ours"], 100, 100.0, None, "float32")
    again.restore(trainer.state(), 4)
    assert again.most_dead == 600
    trainer.most_dead, again.most_dead = None, 256
    again.restore(trainer.state(), 4)  # what a CPU has written
    assert again.most_dead == 256


def test_the_report_is_of_all_processes_tokens(monkeypatch):
    """Here two processes with the same tokens: a sum over processes doubles, and one process has them all twice."""
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    whole = LayerTrainer(TopKSAE(8, 24, 2), RECIPES["ours"], 10, 100.0, None, "float32")
    share = LayerTrainer(TopKSAE(8, 24, 2), RECIPES["ours"], 10, 100.0, None, "float32", together=True)
    for _ in range(2):
        whole.step(torch.cat([z, z]))
    monkeypatch.setattr(processes, "team", lambda: processes.Team(0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, how: tensor.mul_(2))
    for _ in range(2):
        share.step(z)
    assert share.report(2) == pytest.approx(whole.report(2), rel=1e-5)


@pytest.mark.parametrize("name", ["W_enc_rows", "b_dec", "W_dec.exp_avg_sq", "report_sums"])
def test_whatever_is_not_finite_in_a_state_is_seen(name):
    trainer = LayerTrainer(TopKSAE(8, 24, 2), RECIPES["ours"], 10, 100.0, None, "float32")
    trainer.step(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert trainer.is_finite(whole=True)
    trainer.state()[name].view(-1)[0] = float("inf")
    assert not trainer.is_finite(whole=True)
    assert trainer.is_finite(whole=False) is (name != "report_sums")


@pytest.mark.parametrize(
    ("d_sae", "n_steps", "expected"),
    [(2**14, 4000, 2e-4), (2**14, 10**6, 2e-4), (2**12, 4000, 4e-4), (2**14, 1000, 4e-4), (2**14, 1, 1e-3)],
)
def test_narrow_saes_and_short_runs_learn_faster(d_sae, n_steps, expected):
    assert default_lr(d_sae, n_steps) == pytest.approx(expected)


@pytest.mark.parametrize(("recipe", "share"), [("ours", 0.1), ("original", 1.0)])
def test_adams_first_step_is_the_learning_rate_and_b_decs_a_share_of_it(recipe, share):
    """On its first step Adam moves every entry that has a gradient by the learning rate."""
    torch.manual_seed(0)
    sae = TopKSAE(8, 16, 4)
    before = {name: value.detach().clone() for name, value in sae.named_parameters()}
    trainer = LayerTrainer(sae, RECIPES[recipe], 1, 100.0, 0.01, "float32")
    trainer.step(torch.randn(50, 8))
    for name, expected in (("b_dec", 0.01 * share), ("W_enc_rows", 0.01)):
        moved = (getattr(sae, name).detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(expected, rel=0.01), name


def trained_in_float64(trainer, batches):
    """Plain autograd over dense codes and Adam as torch has it, from where the trainer stands; returns weights, moments."""
    sae, recipe = copy.deepcopy(trainer.sae).double(), trainer.recipe
    lrs = {
        name: trainer.lr * (recipe.b_dec_lr if name == "b_dec" else 1) for name, _ in sae.named_parameters()
    }
    groups = [{"params": [value], "lr": lrs[name]} for name, value in sae.named_parameters()]
    adam = torch.optim.Adam(groups, betas=(0.9, recipe.beta2), foreach=False)
    since_fired = torch.zeros(sae.d_sae)
    for z in batches:
        adam.zero_grad()
        done = sae.loss(z.double(), since_fired > trainer.dead_after if recipe.auxk else None)
        done.loss.backward()
        if recipe.unit_norm:
            sae.remove_parallel_gradient()
        adam.step()
        if recipe.unit_norm:
            sae.normalize_decoder()
        since_fired = torch.where(done.fired > 0, 0, since_fired + len(z))
    assert 0 < (since_fired > trainer.dead_after).sum() < sae.d_sae
    moments = {
        f"{n}.{m}": adam.state[p][m] for n, p in sae.named_parameters() for m in ("exp_avg", "exp_avg_sq")
    }
    return {**dict(sae.named_parameters()), **moments}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("recipe", ["ours", "original"])
def test_thirty_steps_are_those_of_autograd_and_adam_in_float64(recipe, together, monkeypatch):
    """Latent by latent and (`together`) with all gradients written: with dead latents, AuxK, b_dec at its own rate."""
    monkeypatch.setattr(LayerTrainer, "schedule", lambda self: 1.0)
    random, sae = torch.Generator().manual_seed(0), TopKSAE(12, 40, 4)
    with torch.no_grad():
        for parameter, spread in ((sae.W_enc_rows, 0.3), (sae.b_enc, 0.3), (sae.b_dec, 1.0)):
            parameter += spread * torch.randn(parameter.shape, generator=random)
    trainer = LayerTrainer(sae, RECIPES[recipe], 30, 100.0, 3e-3, "float32", together=together)
    trainer.dead_after = 40
    batches = [torch.randn(20, 12, generator=random) * 2 + 1 for _ in range(30)]
    expected = trained_in_float64(trainer, batches)
    for z in batches:
        trainer.step(z)
    state = trainer.state()
    assert {name for name in state if name.endswith(".step")} == {
        f"{n}.step" for n, _ in sae.named_parameters()
    }
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value.detach(), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("n_tokens", "expected"), [(100.0, 2400), (1e6, 10_000), (2e9, 10_000_000)])
def test_a_latent_is_dead_after_a_share_of_the_run_and_no_sooner_than_can_be_told(n_tokens, expected):
    """24 latents of which 2 fire a token: in 2,400 tokens each has its turn 200 times."""
    trainer = LayerTrainer(TopKSAE(8, 24, 2), RECIPES["ours"], 100, n_tokens, None, "float32")
    assert trainer.dead_after == expected
