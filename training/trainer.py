"""Train one SAE on one layer's tokens: recipe, optimiser, dead latents, state."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from features import RANDOM_SAE
from plumbing.processes import add_up_all
from sae import Gradients, Step, TopKSAE
from sae_kernels import Rates, adam_by_latent


class Recipe(NamedTuple):
    """How SAEs are trained."""

    standardized: bool  # centre and scale the activations first
    unit_norm: bool  # keep decoder rows at unit norm, and drop the gradient along them
    auxk: bool  # dead latents learn to reconstruct what is left (Gao et al. 2024, arXiv 2406.04093, A.2)
    warm_up: float  # the first share of the steps, in which the learning rate rises from zero
    decay: float  # the last share of the steps, in which it falls to zero
    lr: float | None  # None: `default_lr`
    beta2: float  # Adam's memory of squared gradients
    b_dec_lr: float  # the learning rate of b_dec, as a share of that of the other weights
    trained: bool = True  # False: the initial weights are recorded with, a control


RECIPES = {
    # A step of b_dec moves the activations of all latents: at the full learning rate it killed 28 % of the latents
    # of DINOv2-S's last layer, at a tenth of it 4 %. A latent's gradient is zero on most steps, which suits a smaller
    # beta2: FVU is a twentieth lower. (Measured by `benchmarks/sae_quality.py` on real encoders.)
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
RECIPES[RANDOM_SAE] = RECIPES["ours"]._replace(trained=False)

SHORT_RUN, MOST_FASTER = 4000, 5.0  # fewer steps than this get a higher learning rate, at most so many times

DEAD_ROOM = 256  # on a GPU, AuxK takes in up to this many dead latents, or twice those of the last report

# A latent is dead after 1 % of the run's tokens without firing, at most 10M, but never before it would have fired
# 200 times if all latents fired equally often (200 d_sae / k tokens).
DEAD_SHARE, DEAD_TOKENS, DEAD_TURNS = 0.01, 10_000_000, 200


class Standardizer(NamedTuple):
    """A layer's mean [d_in] and one scale: z = (x - mean) / scale has entries of mean square one.

    Uncentred activations are the first cause of dead latents, and one scale lets one learning rate suit all layers.
    `center`: the mean of z where the recipe does not centre, else None; the reported FVU is about it.
    """

    mean: Float[Tensor, " d_in"]
    scale: float
    center: Float[Tensor, " d_in"] | None = None

    def __call__(self, tokens: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        return (tokens - self.mean) / self.scale


class Moments:
    """The mean of a layer's tokens and the sum of squares about it, added up batch by batch in float64.

    Merged as in Chan, Golub and LeVeque (1979): no batch is kept, and a large mean costs no digits.
    """

    def __init__(self):
        self.count, self.mean, self.spread = 0, torch.zeros(()), torch.zeros(())

    def add(self, tokens: Float[Tensor, "token d_in"]):
        """Add a batch."""
        x = tokens.double()
        mean = x.mean(0)
        self.merge(len(x), mean, (x - mean).square().sum())

    def merge(self, count: int, mean: Float[Tensor, " d_in"], spread: Float[Tensor, ""]):
        """Add tokens of which the moments are known."""
        away, total = mean - self.mean.to(mean), self.count + count
        between = away.square().sum() * (self.count * count / total)
        self.spread = self.spread.to(mean) + spread + between
        self.mean = self.mean.to(mean) + away * (count / total)
        self.count = total

    def standardizer(self, recipe: Recipe) -> Standardizer:
        """The standardiser of the tokens so far; the identity where the recipe does not standardise."""
        mean = self.mean.float()
        if not recipe.standardized:
            return Standardizer(torch.zeros_like(mean), 1.0, center=mean)
        return Standardizer(mean, float((self.spread / (self.count * len(mean))).sqrt()) or 1.0)


def default_lr(d_sae: int, n_steps: int) -> float:
    """2e-4 sqrt(2^14 / d_sae) (Gao et al. 2024, section 2.3), and up to five times as much in short runs."""
    faster = min(max(1.0, math.sqrt(SHORT_RUN / n_steps)), MOST_FASTER)
    return 2e-4 / math.sqrt(d_sae / 2**14) * faster


class Report(NamedTuple):
    """The numbers of a trainer's steps since its last report."""

    loss: float  # mean over the steps
    fvu: float
    dead_fraction: float  # of the latents, those that AuxK takes for dead now
    lr: float  # of the last step
    tokens: int  # trained on so far


class Stepped(NamedTuple):
    """The numbers of one step, over the tokens of all processes; still on the device."""

    fired: Int[Tensor, " d_sae"]  # the number of tokens on which each latent was above zero
    n_tokens: Int[Tensor, "1"]
    sums: Float[Tensor, "3"]  # loss, squared error, squared distance of the tokens from their mean


class LayerTrainer:
    """Trains one `TopKSAE` on standardised tokens.

    `together`: each process of several steps on its own share of the tokens; gradients are summed, so that all keep the
    same SAE. Otherwise this process alone has the SAE, and steps on all tokens.
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
        together: bool = False,
    ):
        self.center, self.together = center, together
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
        self.tokens = torch.zeros(1, dtype=torch.long, device=device)  # trained on, by all processes
        self.report_sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, error, variance
        self.most_dead = min(DEAD_ROOM, sae.d_sae) if sae.b_enc.is_cuda else None
        self.steps_done = 0

    def schedule(self) -> float:
        """The factor of the learning rate: linear warm-up, constant, linear decay."""
        done = self.steps_done + 1
        rise = done / max(1.0, self.recipe.warm_up * self.n_steps)
        fall = (self.n_steps + 1 - done) / max(1.0, self.recipe.decay * self.n_steps)
        return min(1.0, rise, fall)

    def step(self, z: Float[Tensor, "token d_in"]):
        """One Adam step; nothing here waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule() * group["share"]
        dead = self.dead() if self.recipe.auxk else None
        done = self.step_together(z, dead) if self.together else self.step_alone(z, dead)
        self.since_fired = (self.since_fired + done.n_tokens).masked_fill_(done.fired > 0, 0)
        self.report_sums += done.sums
        self.tokens += done.n_tokens
        self.steps_done += 1

    def step_alone(self, z: Float[Tensor, "token d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Stepped:
        """The step of the one process that has the SAE, on all tokens."""
        done, gradients = self.sae.gradients(z, dead, precision=self.precision, most_dead=self.most_dead)
        if self.sae.W_dec.is_cpu and self.sae.W_dec.dtype == torch.float32:
            self.descend_by_latent(gradients)
        else:
            self.sae.set_gradients(gradients)
            self.descend()
        return self.stepped(z, done)

    def step_together(self, z: Float[Tensor, "token d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Stepped:
        """The step of one process of several, on its share of the tokens.

        Two all-reduces: two numbers, by which the gradients are scaled, and all else in one flat buffer.
        """
        done, gradients = self.sae.gradients(
            z, dead, precision=self.precision, most_dead=self.most_dead, together=True
        )
        self.sae.set_gradients(gradients)
        stepped = self.stepped(z, done)
        own = (parameter.grad for parameter in self.sae.parameters() if parameter.grad is not None)
        add_up_all([*own, *stepped])
        self.descend()
        return stepped

    def stepped(self, z: Float[Tensor, "token d_in"], done: Step) -> Stepped:
        """The numbers of a step on these tokens."""
        centered = z if self.center is None else z - self.center
        sums = torch.stack([done.loss, done.squared_error, centered.square().sum()])
        return Stepped(done.fired, torch.full_like(done.fired[:1], len(z)), sums)

    def descend(self):
        """Change the weights by the gradients, which are dropped: kept, they would take the room of another SAE's."""
        if self.recipe.unit_norm:
            self.sae.remove_parallel_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.recipe.unit_norm:
            self.sae.normalize_decoder()

    def descend_by_latent(self, gradients: Gradients):
        """`descend`, but that no gradient is written, and each weight and moment is read and written once."""
        sae, group = self.sae, self.optimizer.param_groups[0]
        sae.b_enc.grad, sae.b_dec.grad = gradients.b_enc, gradients.b_dec
        self.optimizer.step()  # of the biases: the matrices have no .grad
        for weights, gradient, unit_norm in (
            (sae.W_dec, gradients.W_dec, self.recipe.unit_norm),
            (sae.W_enc_rows, gradients.W_enc_rows, False),
        ):
            state = self.optimizer.state[weights]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
            state["step"] += 1
            rates = Rates.at(state["step"].item(), group["lr"], group["betas"], group["eps"])
            adam_by_latent(weights, state["exp_avg"], state["exp_avg_sq"], gradient, rates, unit_norm)

    def report(self, n_steps: int) -> Report:
        """Report on the `n_steps` since the last report, over all processes' tokens; waits for the device."""
        loss, error, variance = self.report_sums.tolist()
        self.report_sums.zero_()
        n_dead = int(self.dead().sum())
        if self.most_dead is not None:
            self.most_dead = min(max(DEAD_ROOM, 2 * n_dead), self.sae.d_sae)
        return Report(
            loss=loss / n_steps,
            fvu=error / variance if variance else math.nan,
            dead_fraction=n_dead / self.sae.d_sae,
            lr=self.optimizer.param_groups[0]["lr"],
            tokens=int(self.tokens),
        )

    def is_finite(self, whole: bool) -> bool:
        """Whether the losses since the last report are finite and, with `whole`, the whole state; waits for the device.

        A weight that is not finite makes the loss of the next step so.
        """
        tensors = self.state().values() if whole else [self.report_sums]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def dead(self) -> Tensor:
        """Which latents, bool [d_sae], have not fired for more than `dead_after` tokens."""
        return self.since_fired > self.dead_after

    # The state that a killed run resumes from -----------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, as named tensors."""
        tensors = {
            "since_fired": self.since_fired,
            "report_sums": self.report_sums,
            "tokens": self.tokens,
        }
        tensors["most_dead"] = torch.tensor(self.most_dead or 0)
        for name, parameter in self.sae.named_parameters():
            tensors[name] = parameter.detach()
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{name}.{moment}"] = value
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], steps_done: int):
        """Resume from a `state` that was taken after `steps_done` steps."""
        self.steps_done = steps_done
        self.since_fired.copy_(tensors["since_fired"])
        self.report_sums.copy_(tensors["report_sums"])
        self.tokens.copy_(tensors["tokens"])
        self.most_dead = int(tensors["most_dead"]) or self.most_dead  # 0: of a CPU, which counts
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[name])
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment] = torch.empty_like(parameter).copy_(
                    tensors[f"{name}.{moment}"]
                )
            self.optimizer.state[parameter]["step"] = tensors[f"{name}.step"].to(parameter.device)
