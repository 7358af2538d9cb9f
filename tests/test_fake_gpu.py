"""What runs on a GPU, on PyTorch's fake CUDA tensors: they have a device, a shape and a dtype, and no numbers.

An operation on tensors of two devices fails, and so does whatever asks for a number (`.item()`, `.tolist()`, `nonzero`,
a shape that depends on numbers), for which a real GPU would have to be waited for.
"""

import numpy as np
import pytest
import small_world
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from comparing import dense
from encoders.wrapper import Activations
from sae import TopKSAE
from sae_kernels import error_and_products
from training import codes, record
from training.quality import Quality
from training.trainer import RECIPES, LayerTrainer, Moments

D_IN, D_SAE, K = 8, 24, 3


@pytest.fixture
def gpu():
    """Every tensor that is made is fake, and "cuda" is a device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield "cuda"


@pytest.fixture
def landing(monkeypatch):
    """The shapes of the tensors that `.cpu()` has copied; zeros are what arrives."""
    shapes = []

    class Landed:
        def __init__(self, tensor):
            shapes.append(tuple(tensor.shape))
            self.zeros = np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

        def numpy(self):
            return self.zeros

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: Landed(tensor))
    return shapes


def sae_on(device, d_sae=D_SAE):
    """An SAE on the device. (`Module.to` does not move fake tensors.)"""
    sae = TopKSAE(D_IN, d_sae, K)
    for name, parameter in list(sae.named_parameters()):
        setattr(sae, name, nn.Parameter(torch.empty(parameter.shape, device=device)))
    return sae


def trainer_on(device, recipe="ours", precision="float32"):
    sae = sae_on(device, d_sae=600)  # more latents than AuxK takes in
    center = None if RECIPES[recipe].standardized else torch.zeros(D_IN, device=device)
    return LayerTrainer(sae, RECIPES[recipe], 10, 1000.0, None, precision, center)


def batch_on(device):
    """Three items of five tokens of one layer, the first of each recorded."""
    tokens = torch.empty(3, 5, D_IN, device=device)
    mask = torch.ones(3, 5, dtype=torch.bool, device=device)
    return Activations({0: tokens}, mask, torch.zeros(3, dtype=torch.long, device=device), [0, 1, 2])


def all_on(device, *tensors):
    assert {tensor.device.type for tensor in tensors} == {device}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["ours", "original"])
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(gpu, recipe, precision):
    trainer, gradients = trainer_on(gpu, recipe, precision), []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: gradients.extend(p.grad for p in trainer.sae.parameters()) or step()
    for _ in range(2):  # the second has Adam's moments
        trainer.step(torch.empty(40, D_IN, device=gpu))
    state = trainer.state()
    all_on(gpu, *(tensor for name, tensor in state.items() if name != "most_dead"))
    assert {tensor.dtype for tensor in [*trainer.sae.parameters(), *gradients]} == {torch.float32}
    assert [gradient.shape for gradient in gradients] == 2 * [p.shape for p in trainer.sae.parameters()]
    assert not any(p.grad is not None for p in trainer.sae.parameters())  # 1.6 GB for 24 layers of L size


def test_a_layers_standardiser_is_made_of_sums_on_the_gpu(gpu):
    moments = Moments()
    for _ in range(2):
        moments.add(torch.empty(40, D_IN, device=gpu))
    all_on(gpu, moments.mean, moments.spread)
    assert (moments.mean.dtype, moments.count) == (torch.float64, 80)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_the_quality_sums_stay_on_the_gpu_and_wait_for_nothing(gpu, activation):
    sae, batch = sae_on(gpu), batch_on(gpu)
    quality = Quality(sae.b_dec.detach(), D_SAE)
    chosen = torch.arange(15, device=gpu)
    is_recorded = torch.zeros(15, dtype=torch.bool, device=gpu)
    codes.evaluate(quality, sae, batch, 0, chosen, is_recorded, activation)
    all_on(gpu, *quality.state.values())
    assert {tensor.dtype for tensor in quality.state.values()} == {torch.float64}


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_a_batch_is_recorded_from_the_gpu_by_explicit_copies_alone(gpu, landing, activation):
    sae, batch = sae_on(gpu), batch_on(gpu)
    pooling = codes.Pooling(batch)
    all_on(gpu, pooling.chosen, pooling.is_recorded)
    assert landing == []
    found = pooling.features(batch, 0, sae, activation)
    assert (found.shape, found.dtype) == ((3, D_SAE), np.float32)
    assert landing == ([(3, D_SAE)] if activation == "relu" else [(3, K), (3, K)])


def recording_on(device):
    """The arguments of record_batch for three rows of three layers, of which some are judged."""
    work, whole = small_world.settle(pairs=small_world.SmallPairs(30)), batch_on(device)
    judged = np.flatnonzero(work.judged())[:1].tolist()
    layers = {layer: whole.layers[0] for layer in work.stream.layers}
    batch = whole._replace(layers=layers, rows=[*judged, 28, 29], mask_here=np.ones((3, 5), dtype=bool))
    sae = sae_on(device)
    qualities = [{layer: Quality(sae.b_dec.detach(), D_SAE) for layer in layers}]
    return work, batch, [dict.fromkeys(layers, sae)], qualities, [{layer: [] for layer in layers}], []


def test_a_batch_is_recorded_and_judged_by_copies_of_its_codes_alone(gpu, landing):
    _, _, _, qualities, blocks, unseen = arguments = recording_on(gpu)
    record.record_batch(*arguments)
    assert landing == [(3, K), (3, K)] * 3
    assert [rows.shape for layers in blocks for (rows,) in layers.values()] == [(3, D_SAE)] * 3
    all_on(gpu, *(tensor for quality in qualities[0].values() for tensor in quality.state.values()))
    all_on(gpu, *(one.bad for one in unseen))
    assert [one.layer for one in unseen] == [0, 1, 2]


def looks_for_nan(monkeypatch):
    find = record.find_not_finite
    monkeypatch.setattr(record, "find_not_finite", lambda *a: [one for one in find(*a) if one.bad.any()])


def looks_for_the_judged_on_the_gpu(monkeypatch):
    monkeypatch.setattr(Activations, "real_tokens", lambda batch, _: batch.mask.flatten().nonzero()[:, 0])


def counts_the_first_tokens(monkeypatch):
    monkeypatch.setattr(Quality, "update", lambda quality, *_: quality.state["tokens"][0].item())


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (looks_for_nan, DataDependentOutputException),
        (looks_for_the_judged_on_the_gpu, DynamicOutputShapeException),
        (counts_the_first_tokens, DataDependentOutputException),
    ],
)
def test_a_wait_that_is_put_into_recording_is_found(gpu, landing, monkeypatch, fault, error):
    arguments = recording_on(gpu)
    fault(monkeypatch)
    with pytest.raises(error):
        record.record_batch(*arguments)


def test_the_dense_product_is_made_on_the_gpu_and_copied_once_a_block(gpu, landing, monkeypatch):
    on = []
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda x, y: on.append((x.device, y.device)) or torch.mm(x, y)
    )
    monkeypatch.setattr(dense, "cuda", lambda: torch)
    monkeypatch.setattr(dense, "PRODUCT_FEATURES", 4)
    x, y, products = np.ones((5, 6), np.float32), np.ones((5, 3), np.float32), np.zeros((6, 3))
    sides = [(np.ones(n), np.ones(n)) for n in (6, 3)]
    dense._add_product(x, y, products, *sides)
    assert {device.type for pair in on for device in pair} == {gpu}
    assert landing == [(4, 3), (2, 3)]
    assert (products == 2).all()  # the copied zeros, and what the sides add


def on_the_cpu(trainer):
    trainer.since_fired = torch.zeros(600, dtype=torch.long)


def reads_a_number(trainer):
    step = trainer.sae.normalize_decoder
    trainer.sae.normalize_decoder = lambda: step() or trainer.report_sums[0].item()


def reads_a_list(trainer):
    step = trainer.sae.normalize_decoder
    trainer.sae.normalize_decoder = lambda: step() or trainer.tokens.tolist()


def counts(trainer):
    trainer.dead = lambda: trainer.since_fired.new_zeros(trainer.since_fired.nonzero().numel()) > 0


def branches(trainer):
    trainer.schedule = lambda: 1.0 if trainer.tokens > 0 else 0.5


def half_a_weight(trainer):
    trainer.sae.W_dec.data = trainer.sae.W_dec.data.half()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (on_the_cpu, FakeTensorDeviceMismatchError),
        (reads_a_number, DataDependentOutputException),
        (reads_a_list, DataDependentOutputException),
        (branches, DataDependentOutputException),
        (counts, DynamicOutputShapeException),
        (half_a_weight, RuntimeError),
    ],
)
def test_a_fault_that_is_put_into_the_step_is_found(gpu, fault, error):
    trainer = trainer_on(gpu)
    fault(trainer)
    with pytest.raises(error):
        trainer.step(torch.empty(40, D_IN, device=gpu))


@pytest.mark.parametrize("k", [1, 3])
def test_the_direct_operator_gives_autograds_bits(k):
    """In float64, which on the CPU too takes the way of a GPU."""
    random = torch.Generator().manual_seed(0)
    tokens, rows = (torch.randn(n, D_IN, dtype=torch.float64, generator=random) for n in (20, D_SAE))
    values = torch.rand(20, k, dtype=torch.float64, generator=random).requires_grad_()
    latents = torch.randint(0, D_SAE, (20, k), generator=random)
    decoded = torch.nn.functional.embedding_bag(latents, rows, per_sample_weights=values, mode="sum")
    error = tokens - decoded.detach()
    (products,) = torch.autograd.grad(decoded, values, error)
    found = error_and_products(tokens, rows, values.detach(), latents)
    assert torch.equal(found[0], error)
    assert torch.equal(found[1], products)
