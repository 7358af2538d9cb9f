"""One SAE in training on one layer's tokens: its recipe, its optimiser, its dead latents, its state."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from plumbing.processes import add_up
from sae import TopKSAE


class Recipe(NamedTuple):
    """How SAEs are trained. `lr` None: by the SAE's width and the number of steps."""

    standardized: bool  # centre and scale the activations first
    unit_norm: bool  # decoder rows keep unit norm, without the gradient along them
    auxk: bool  # dead latents learn to reconstruct what is left (Gao et al. 2024, arXiv 2406.04093, A.2)
    warm_up: float  # the share of the steps in which the learning rate rises from zero
    decay: float  # and in which it falls to zero
    lr: float | None
    beta2: float  # Adam's memory of squared gradients
    b_dec_lr: float  # b_dec's share of the learning rate


RECIPES = {
    # b_dec begins at the mean of the data, and each of its steps moves every latent's activation: at the rate of
    # the others it killed 28 % of the latents of DINOv2-S's last layer, at a tenth 4 %. A shorter memory suits
    # gradients that are zero on most steps: FVU a twentieth lower. (`benchmarks/sae_quality.py` on real encoders)
    "ours": Recipe(
        standardized=True,
        unit_norm=True,
        auxk=True,
        warm_up=0.05,
        decay=0.2,
        lr=None,
        beta2=0.99,
        b_dec_lr=0.1,
    ),
    # arXiv 2507.18512's public code: plain Adam on raw activations
    "original": Recipe(
        standardized=False,
        unit_norm=False,
        auxk=False,
        warm_up=0.0,
        decay=0.0,
        lr=5e-5,
        beta2=0.999,
        b_dec_lr=1.0,
    ),
}

SHORT_RUN, MOST_FASTER = 4000, 5.0  # steps below which the learning rate grows, and by how much at most

DEAD_ROOM = 256  # dead latents that a GPU makes room for where few or none were dead at the last report

DEAD_SHARE, DEAD_TOKENS = 0.01, 10_000_000  # dead: no firing in this share of the run, or in so many tokens,

DEAD_TURNS = 200  # but in no fewer than in which each latent would fire so often, if all fired alike


class Standardizer(NamedTuple):
    """A layer's mean [d_in] and one scale: z = (x - mean) / scale has entries of mean square one.

    Latents die first where activations are not centred; the scale lets one learning rate suit every layer.
    `center` is the mean of z where a recipe leaves one, else None: FVU is about it, and not about zero.
    """

    mean: Float[Tensor, " d_in"]
    scale: float
    center: Float[Tensor, " d_in"] | None = None

    def __call__(self, tokens: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        return (tokens - self.mean) / self.scale


class Moments:
    """The mean of a layer's tokens and their spread about it, batch by batch, in float64.

    Merged as Chan, Golub and LeVeque do (1979), so that no batch is kept and a large mean cancels nothing.
    """

    def __init__(self):
        self.count, self.mean, self.spread = 0, torch.zeros(()), torch.zeros(())

    def add(self, tokens: Float[Tensor, "token d_in"]):
        """Add a batch."""
        x = tokens.double()
        mean, total = x.mean(0), self.count + len(x)
        away = mean - self.mean.to(x)
        between = away.square().sum() * (self.count * len(x) / total)
        self.spread = self.spread.to(x) + (x - mean).square().sum() + between
        self.mean = self.mean.to(x) + away * (len(x) / total)
        self.count = total

    def standardizer(self, recipe: Recipe) -> Standardizer:
        """From the tokens so far; the identity where the recipe takes activations as they are."""
        mean = self.mean.float()
        if not recipe.standardized:
            return Standardizer(torch.zeros_like(mean), 1.0, center=mean)
        return Standardizer(mean, float((self.spread / (self.count * len(mean))).sqrt()) or 1.0)


def default_lr(d_sae: int, n_steps: int) -> float:
    """2e-4 at 2^14 latents, the narrower the faster (Gao et al. 2024, section 2.3); short runs take larger steps."""
    faster = min(max(1.0, math.sqrt(SHORT_RUN / n_steps)), MOST_FASTER)
    return 2e-4 / math.sqrt(d_sae / 2**14) * faster


class Report(NamedTuple):
    """What a trainer says of its steps since its last report."""

    loss: float  # summed over the steps
    fvu: float
    dead_fraction: float  # of latents, as AuxK takes them for dead now


class LayerTrainer:
    """One `sae.TopKSAE` in training on standardised tokens.

    In a process group every process steps on its own share of the tokens and all keep the same SAE.
    """

    def __init__(
        self,
        sae: TopKSAE,
        recipe: Recipe,
        n_steps: int,
        n_tokens: float,
        lr: float | None,
        precision: str,
        center: Float[Tensor, " d_in"] | None = None,
    ):
        self.center = center
        self.sae, self.recipe, self.n_steps, self.precision = sae, recipe, n_steps, precision
        self.lr = lr or recipe.lr or default_lr(sae.d_sae, n_steps)
        fewest = DEAD_TURNS * sae.d_sae / sae.k
        self.dead_after = min(DEAD_TOKENS, int(max(DEAD_SHARE * n_tokens, fewest)))
        groups = [
            {"params": [sae.W_enc_rows, sae.b_enc, sae.W_dec], "share": 1.0},
            {"params": [sae.b_dec], "share": recipe.b_dec_lr},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=self.lr, betas=(0.9, recipe.beta2), fused=True)
        device = sae.b_enc.device
        self.since_fired = torch.zeros(sae.d_sae, dtype=torch.long, device=device)
        self.report_sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, error, variance
        self.most_dead = min(DEAD_ROOM, sae.d_sae) if sae.b_enc.is_cuda else None
        self.steps_done = 0

    def schedule(self) -> float:
        """The learning rate's factor: up, flat, down, all linear."""
        done = self.steps_done + 1
        rise = done / max(1.0, self.recipe.warm_up * self.n_steps)
        fall = (self.n_steps + 1 - done) / max(1.0, self.recipe.decay * self.n_steps)
        return min(1.0, rise, fall)

    def step(self, z: Float[Tensor, "token d_in"]):
        """One Adam step; nothing here waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule() * group["share"]
        dead = self.dead() if self.recipe.auxk else None
        done = self.sae.step_gradients(z, dead, precision=self.precision, most_dead=self.most_dead)
        n_tokens = torch.full_like(done.fired[:1], len(z))
        centered = z if self.center is None else z - self.center
        sums = torch.stack([done.loss, done.squared_error, centered.square().sum()])
        gradients = (parameter.grad for parameter in self.sae.parameters() if parameter.grad is not None)
        for tensor in (*gradients, done.fired, n_tokens, sums):
            add_up(tensor)
        if self.recipe.unit_norm:
            self.sae.remove_parallel_gradient()
        self.optimizer.step()
        if self.recipe.unit_norm:
            self.sae.normalize_decoder()
        self.since_fired = (self.since_fired + n_tokens).masked_fill_(done.fired > 0, 0)
        self.report_sums += sums
        self.steps_done += 1

    def report(self) -> Report:
        """What the steps since the last report gave, over all processes' tokens; waits for the device."""
        loss, error, variance = self.report_sums.tolist()
        self.report_sums.zero_()
        n_dead = int(self.dead().sum())
        if self.most_dead is not None:
            self.most_dead = min(max(DEAD_ROOM, 2 * n_dead), self.sae.d_sae)
        return Report(loss, error / variance if variance else math.nan, n_dead / self.sae.d_sae)

    def is_finite(self, whole: bool) -> bool:
        """Whether no loss since the last report is NaN or infinite, nor, of the whole, any weight; a host sync.

        A weight that is not finite gives such a loss in the next step.
        """
        tensors = self.state().values() if whole else [self.report_sums]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def dead(self) -> Tensor:
        """Which latents, bool [d_sae], have not fired for `dead_after` tokens."""
        return self.since_fired > self.dead_after

    # The state that a killed run goes on from -----------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, as named tensors."""
        tensors = {"since_fired": self.since_fired, "report_sums": self.report_sums}
        tensors["most_dead"] = torch.tensor(self.most_dead or 0)
        for name, parameter in self.sae.named_parameters():
            tensors[name] = parameter.detach()
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{name}.{moment}"] = value
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], steps_done: int):
        """Go on from a `state` that was taken after `steps_done` steps."""
        self.steps_done = steps_done
        self.since_fired.copy_(tensors["since_fired"])
        self.report_sums.copy_(tensors["report_sums"])
        self.most_dead = int(tensors["most_dead"]) or None
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[name])
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment] = torch.empty_like(parameter).copy_(
                    tensors[f"{name}.{moment}"]
                )
            self.optimizer.state[parameter]["step"] = tensors[f"{name}.step"].to(parameter.device)
