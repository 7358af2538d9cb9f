"""The training steps of sparsify and SAELens, where they are installed, for sae_step.py: theirs, by their own classes."""

import importlib.util
import itertools
import os
from collections.abc import Callable


def peers(d_in: int, d_sae: int, k: int, batches) -> dict[str, Callable[[], Callable[[], object]]]:
    """By name, a function that makes a new SAE and returns its step, on one of the batches after another."""
    makers = {}
    if importlib.util.find_spec("sparsify"):
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # which does without a GPU in vain
        makers["sparsify, signum"] = lambda: sparsify_step(d_in, d_sae, k, batches, signum)
        makers["sparsify, fused Adam"] = lambda: sparsify_step(d_in, d_sae, k, batches, fused_adam)
    if importlib.util.find_spec("sae_lens"):
        makers["SAELens"] = lambda: saelens_step(d_in, d_sae, k, batches)
    return makers


def signum(parameters):
    """sparsify's default."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    optimizer = ScheduleFreeWrapper(SignSGD(parameters, lr=1e-4), momentum=0.95)
    optimizer.train()
    return optimizer


def fused_adam(parameters):
    """What sparsify's `--optimizer adam` takes, and fused, which it does not ask for."""
    import torch

    return torch.optim.Adam(parameters, lr=1e-4, fused=True)


def sparsify_step(d_in: int, d_sae: int, k: int, batches, make_optimizer):
    """What `sparsify.Trainer.fit` does with an SAE for one batch; without AuxK, which is its default."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=batches.device)
    optimizer = make_optimizer(list(sae.parameters()))
    since_fired = torch.zeros(d_sae, dtype=torch.long, device=batches.device)
    tokens = itertools.cycle(batches)

    def run():
        x = next(tokens)
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, x, total_variance=(x - x.mean(0)).pow(2).sum())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(len(x))
        since_fired[out.latent_indices.flatten()] = 0
        return float(out.fvu.detach())

    return run


def saelens_step(d_in: int, d_sae: int, k: int, batches):
    """`SAETrainer.step`. (Its sparse activations were slower on the CPU, or failed.)"""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    device = str(batches.device)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device=device))
    config = SAETrainerConfig(1_000_000, batches.shape[1], lr=1e-4, lr_end=1e-5, device=device)
    trainer = SAETrainer(config, sae, iter([]))
    tokens = itertools.cycle(batches)
    return lambda: trainer.step(next(tokens))
