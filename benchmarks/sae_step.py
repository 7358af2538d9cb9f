"""The time of one training step of a TopK SAE, beside its matrix product, plain autograd and other libraries.

uv run benchmarks/sae_step.py
uv run --with eai-sparsify --with sae-lens benchmarks/sae_step.py     # beside sparsify's and SAELens' steps too

A step is everything that training does for a batch of tokens. "ours" is `LayerTrainer.step`; "plain" is what the
original does: autograd over dense codes and torch.optim.Adam as it comes, here with the decoder kept at unit norm. Each
is timed with one SAE, and with twelve that take their steps one after another, as in a run of twelve layers. The repeats
are interleaved and their medians compared, since other programs come and go. "The product" is the encoder's in float32,
as torch.addmm makes it or as oneDNN does, whichever is faster. Ours makes it in bfloat16 to rule latents out, where the
CPU is faster at that, and the rest in float32 (screening.py).

Every step takes other tokens, as in training: on the same ones again and again an SAE learns them by heart, and ever more
latents come close to the k largest (of 6,144, 43 are worked out in float32 at the first step and 93 at the 28th).

The limit of a step with a float32 product is beside its target: the product, and each weight and moment read and
written once, at the rate of a triad (a = b + c) over arrays that no cache holds. Beyond it, what a step waits for is
memory: of 42 ms (2 cores of an EPYC 9004, twelve in turn), the product in bfloat16 takes 18.5, ruling out and working out
the rest 5.8 (105 MB of the encoder's rows, from all over it), Adam with the sums of gradients 8.1 (226 MB: 6.2 at the rate
of the triad), decoding 2.5 (79 MB of rows), rounding the encoder 1.0 and its product for b_dec's gradient 1.3 (19 MB each).
Without bfloat16 the float32 product alone takes 36: with 17 ms for the rest the target is missed.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plumbing.commandline import Parser, positive, script

# At most so many times the product; at least so many times as fast as sparsify and as the plain step. On the CPU.
TIMES_THE_PRODUCT, TIMES_SPARSIFY, TIMES_PLAIN = 1.4, 2.1, 4.5

BATCHES = 16  # of tokens, which a step takes in turn

PRODUCTS = ("product, addmm", "product, oneDNN")


def parse(argv):
    parser = Parser(__doc__, __file__)
    parser.add_argument("--d_in", type=positive, default=768, help="width of the activations")
    parser.add_argument("--d_sae", type=positive, default=6144, help="number of latents")
    parser.add_argument("--top_k", type=positive, default=32, help="active latents of a token")
    parser.add_argument("--tokens", type=positive, default=800, help="tokens of a batch")
    parser.add_argument("--saes", type=positive, default=12, help="SAEs that take their steps in turn")
    parser.add_argument(
        "--repeats", type=positive, default=25, help="interleaved repeats; a fifth of them in turn"
    )
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    return parser.parse_args(argv)


@script
def main(argv=None) -> dict[str, float]:
    """Print both tables; returns the median milliseconds by row, of the steps in turn with the number of SAEs."""
    arguments = parse(argv)
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA; nothing on the CPU
    print(heading(arguments, device))
    medians = {}
    for n_saes, repeats in ((1, arguments.repeats), (arguments.saes, max(3, arguments.repeats // 5))):
        times = interleaved(contenders(arguments, device, n_saes), repeats, device)
        found = {name: statistics.median(values) for name, values in times.items()}
        print(table(found, times, n_saes))
        print(verdicts(found, limit(arguments, device)))
        medians |= {name if n_saes == 1 else f"{name}, {n_saes} in turn": ms for name, ms in found.items()}
    return medians


def contenders(arguments, device: str, n_saes: int) -> dict:
    """What is timed, by name: a list of functions without arguments, one for each SAE."""
    import torch
    from sae_peers import peers

    shape = (arguments.d_in, arguments.d_sae, arguments.top_k)
    random = torch.Generator().manual_seed(0)
    batches = torch.randn(BATCHES, arguments.tokens, arguments.d_in, generator=random).to(device)
    x = batches[0]
    makers = {
        "product, addmm": lambda: product(shape, x, onednn=False),
        "product, oneDNN": lambda: product(shape, x, onednn=True),
        "ours": lambda: our_step(shape, batches),
        "plain": lambda: plain_step(shape, batches),
        **peers(*shape, batches),
    }
    if n_saes == 1:
        makers["ours, 5% dead (AuxK)"] = lambda: our_step(shape, batches, dead_share=0.05)
        makers["ours, nothing ruled out"] = lambda: without_screening(our_step(shape, batches))
        makers["ours, --precision bfloat16"] = lambda: our_step(shape, batches, precision="bfloat16")
    return {name: [make() for _ in range(n_saes)] for name, make in makers.items()}


def product(shape, x, onednn: bool):
    """The encoder's product alone."""
    import torch

    from sae import TopKSAE
    from topk import linear

    sae = TopKSAE(*shape).to(x.device)
    rows, b_enc = sae.W_enc_rows.detach(), sae.b_enc.detach()
    if onednn:
        return torch.no_grad()(lambda: linear(x, rows, b_enc))
    W_enc = rows.T.contiguous()
    return lambda: torch.addmm(b_enc, x, W_enc)


def our_step(shape, batches, dead_share: float = 0.0, precision: str = "float32"):
    """The step of training, in the middle of a long run; `dead_share` of the latents count as dead."""
    import torch

    from sae import TopKSAE
    from training.trainer import RECIPES, LayerTrainer

    sae, tokens = TopKSAE(*shape).to(batches.device), itertools.cycle(batches)
    trainer = LayerTrainer(sae, RECIPES["ours"], 1000, 1e6, 1e-4, precision)
    trainer.steps_done = 500
    dead = (torch.rand(shape[1], generator=torch.Generator().manual_seed(1)) < dead_share).to(batches.device)
    trainer.dead = lambda: dead
    return lambda: trainer.step(next(tokens))


def without_screening(step):
    """A step as on a CPU that is not faster in bfloat16."""
    from unittest import mock

    import screening

    def run():
        with mock.patch.object(screening, "screening_pays", return_value=False):
            step()

    return run


def plain_step(shape, batches):
    """Autograd over dense codes, without AuxK."""
    import torch

    from sae import TopKSAE

    sae, tokens = TopKSAE(*shape).to(batches.device), itertools.cycle(batches)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def run():
        optimizer.zero_grad()
        sae.loss(next(tokens)).loss.backward()
        sae.remove_parallel_gradient()
        optimizer.step()
        sae.normalize_decoder()

    return run


def interleaved(runs: dict, repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of a step, by name, of each repeat."""
    times = {name: [] for name in runs}
    for repeat in range(-2, repeats):  # the first ones compile, allocate and warm up
        for name, steps in runs.items():
            milliseconds = timed(steps, device)
            if repeat >= 0:
                times[name].append(milliseconds)
    return times


def timed(steps: list, device: str) -> float:
    """Milliseconds of one of some steps, which are taken one after another."""
    import torch

    start = time.perf_counter()
    for step in steps:
        step()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start) / len(steps)


def limit(arguments, device: str) -> tuple[float, float]:
    """Milliseconds in which all weights and moments can be read and written once, and the GB/s of the triad."""
    import torch

    a, b, c = torch.ones(3, 40_000_000, device=device)
    seconds = min(timed([lambda: torch.add(b, c, out=a)], device) for _ in range(7)) / 1e3
    rate = 3 * a.nbytes / seconds
    traffic = (
        2 * 3 * 2 * 4 * arguments.d_in * arguments.d_sae
    )  # two matrices, with two moments each, in and out
    return 1e3 * traffic / rate, rate / 1e9


def heading(arguments, device: str) -> str:
    """Sizes, hardware, and what else the machine does."""
    import os

    import torch

    cuda = device.startswith("cuda")
    hardware = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    return (
        f"d_in {arguments.d_in}, d_sae {arguments.d_sae}, k {arguments.top_k}, {arguments.tokens} tokens; "
        f"{hardware}; medians of {arguments.repeats}; load {os.getloadavg()[0]:.1f}"
    )


def table(medians: dict, times: dict, n_saes: int) -> str:
    """The medians, and their ratios to the product and to ours."""
    title = "one SAE" if n_saes == 1 else f"{n_saes} SAEs in turn, each"
    product, ours = min(medians[name] for name in PRODUCTS), medians["ours"]
    lines = [f"\n{title:<28}{'ms':>8}{'fastest':>9}{'/ product':>11}{'/ ours':>9}"]
    for row, median in medians.items():
        lines.append(
            f"{row:<28}{median:8.1f}{min(times[row]):9.1f}{median / product:11.2f}{median / ours:9.2f}"
        )
    return "\n".join(lines)


def verdicts(medians: dict, limit: tuple[float, float]) -> str:
    """What became of the targets, the limit beside that of the product."""
    product, ours = min(medians[name] for name in PRODUCTS), medians["ours"]
    sparsify = [ms for name, ms in medians.items() if name.startswith("sparsify")]
    milliseconds, rate = limit
    lowest = f" (weights and moments once at {rate:.0f} GB/s: {1 + milliseconds / product:.2f})"
    rows = [
        (ours / product, TIMES_THE_PRODUCT, -1, "times the product" + lowest),
        (medians["plain"] / ours, TIMES_PLAIN, 1, "times as fast as plain"),
    ]
    if sparsify:
        rows.append((min(sparsify) / ours, TIMES_SPARSIFY, 1, "times as fast as sparsify's faster one"))
    lines = []
    for value, target, sign, text in rows:
        verdict = "met" if sign * value >= sign * target else "NOT met"
        lines.append(
            f"{value:.2f} {text}: target {'at least' if sign > 0 else 'at most'} {target}: {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
