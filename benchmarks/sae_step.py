"""The time of one training step of a TopK SAE: the sparse step against plain autograd and the encoder's GEMM.

uv run benchmarks/sae_step.py

A step is everything that training does for a batch of tokens: the gradients, the removal of the decoder
gradient's parallel part, Adam, and the decoder's renormalisation. "plain" is autograd over dense codes with
torch.optim.Adam as it comes; "sparse" is `step_gradients` with fused Adam. The GEMM is torch.addmm; on the
CPU the sparse step takes oneDNN's instead, which is the row below it. The repeats are interleaved and their
medians compared, since other programs come and go.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plumbing.commandline import Parser, positive, script

TIMES_FASTER, TIMES_THE_GEMM = 4.5, 1.5  # what the sparse float32 step is to reach on the CPU


def parse(argv):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--d_in", type=positive, default=768, help="width of the activations")
    parser.add_argument("--d_sae", type=positive, default=6144, help="number of latents")
    parser.add_argument("--top_k", type=positive, default=32, help="active latents of a token")
    parser.add_argument("--tokens", type=positive, default=800, help="tokens of a batch")
    parser.add_argument("--repeats", type=positive, default=25, help="interleaved repeats")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    return parser.parse_args(argv)


@script
def main(argv=None) -> dict[str, float]:
    """Print the table; returns the median milliseconds by row."""
    arguments = parse(argv)
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA; nothing on the CPU
    contenders = make_contenders(arguments, device)
    times = {name: [] for name in contenders}
    for repeat in range(-3, arguments.repeats):  # the first ones compile, allocate and warm up
        for name, run in contenders.items():
            milliseconds = timed(run, device)
            if repeat >= 0:
                times[name].append(milliseconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(table(arguments, device, medians, times))
    return medians


def make_contenders(arguments, device: str) -> dict:
    """What is timed, by name: functions without arguments."""
    import torch

    from sae import TopKSAE
    from sae_kernels import linear

    def new_sae():
        return TopKSAE(arguments.d_in, arguments.d_sae, arguments.top_k).to(device)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.tokens, arguments.d_in, generator=generator).to(device)
    dead = (torch.rand(arguments.d_sae, generator=generator) < 0.05).to(device)
    none_dead = torch.zeros_like(dead)
    W_enc, b_enc = (p.detach() for p in (new_sae().W_enc, new_sae().b_enc))
    low_x, low_W_enc = x.bfloat16(), W_enc.bfloat16()
    return {
        "encoder GEMM": lambda: torch.addmm(b_enc, x, W_enc),
        "encoder GEMM, as stepped": torch.no_grad()(lambda: linear(x, W_enc.T, b_enc)),
        "sparse step": step(new_sae(), x, none_dead, fused=True),
        "plain step": step(new_sae(), x, None, fused=False),
        "sparse step, 5% dead (AuxK)": step(new_sae(), x, dead, fused=True),
        "encoder GEMM, bfloat16": lambda: low_x @ low_W_enc,
        "sparse step, bfloat16": step(new_sae(), x, none_dead, fused=True, precision="bfloat16"),
    }


def step(sae, x, dead, fused: bool, **options):
    """A whole training step: sparse where `fused`, else plain."""
    import torch

    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=fused or None)

    def run():
        if fused:
            sae.step_gradients(x, dead, **options)
        else:
            optimizer.zero_grad()
            sae.loss(x, dead).loss.backward()
        sae.remove_parallel_gradient()
        optimizer.step()
        sae.normalize_decoder()

    return run


def timed(run, device: str) -> float:
    """Milliseconds of one call."""
    import torch

    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def table(arguments, device: str, medians: dict, times: dict) -> str:
    """The medians, their ratios to the GEMM and to the plain step, and what became of the targets."""
    import os

    import torch

    gemm, plain, sparse = (medians[name] for name in ("encoder GEMM", "plain step", "sparse step"))
    cuda = device.startswith("cuda")
    hardware = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    lines = [
        f"d_in {arguments.d_in}, d_sae {arguments.d_sae}, k {arguments.top_k}, {arguments.tokens} tokens;"
        f" {hardware}; medians of {arguments.repeats}; load {os.getloadavg()[0]:.1f}",
        f"{'':<28}{'ms':>8}{'fastest':>9}{'/ GEMM':>9}{'x plain':>9}",
    ]
    for row, median in medians.items():
        lines.append(f"{row:<28}{median:8.1f}{min(times[row]):9.1f}{median / gemm:9.2f}{plain / median:9.2f}")
    for value, target, sign, text in (
        (plain / sparse, TIMES_FASTER, 1, "times as fast as the plain step"),
        (sparse / gemm, TIMES_THE_GEMM, -1, "times the encoder GEMM"),
    ):
        verdict = "met" if sign * value >= sign * target else "NOT met"
        lines.append(f"{value:.2f} {text}: target {'>=' if sign > 0 else '<='} {target}: {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
