"""Samples per second of a whole train_image and train_text against a plain loop, B/32 size, all 12 layers.

The plain loop is written as the method's public code is: pictures decoded in the main process, captions padded to 77
tokens and the padding trained on, one dense autograd step and one Adam (5e-5) for each SAE, then a second pass that
encodes each sample's first token with ReLU into dense half-precision rows. It is given the benefit of no_grad around
the encoder, and writes no files. Ours does all that its run folder needs. Both load the encoder (random weights: the
speed is the same) in the time that is measured, and both read the same 640 x 480 JPEG files.

uv run benchmarks/pipeline.py --sizes B L

has no plain loop: for encoders of both sizes it prints the pictures a second of training and recording, decoding
included, without the time in which the encoder is loaded; the same of reading alone (in one process) and of the encoder
alone, on the same batches, which lie on the device already; and the encoder's share: its seconds by those of all.
"""

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from encoders.row import PRECISIONS
from plumbing.commandline import Parser, natural, positive, script

TARGET = 2.5
CHECKPOINT, EXPANSION, TOP_K, BATCH = "ViT-B/32-quickgelu", 8, 32, 16
SIZES = {"B": CHECKPOINT, "L": "ViT-L/14-quickgelu"}
LAYERS = {"-1": (-1,), "all": None}
WORDS = [
    "a",
    "man",
    "woman",
    "dog",
    "cat",
    "red",
    "old",
    "small",
    "street",
    "table",
    "on",
    "under",
    "beside",
    "rides",
    "holds",
    "eats",
    "with",
    "two",
    "near",
    "train",
]


@script
def main(argv=None) -> dict[str, float]:
    """Print the table; returns the ratio by script, or the pictures a second by size and layers."""
    parser = Parser(__doc__, __file__)
    add = parser.add_argument
    add("--samples", type=positive, default=1024, help="an epoch of 64 batches")
    add("--repeats", type=positive, default=3)
    add("--only", choices=("train_image", "train_text"), help="one script against its plain loop")
    add(
        "--sizes",
        nargs="+",
        choices=SIZES,
        help="of encoders, whose share of the time is told; no plain loop",
    )
    add("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="of --sizes")
    add("--encoder_precision", choices=PRECISIONS, default="float32", help="of --sizes")
    add("--workers", type=natural, default=0, help="of ours; the plain loop decodes in its own process")
    add("--device", help="of both; by default a GPU where there is one")
    arguments = parser.parse_args(argv)
    from plumbing.processes import own_device

    arguments.device = own_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data(Path("pictures"), arguments.samples)
        found = by_size(arguments) if arguments.sizes else against_plain(arguments)
        os.chdir("/")
    return found


def against_plain(arguments) -> dict[str, float]:
    """Print samples a second of ours and of the plain loop; returns their ratio by script."""
    import train_image
    import train_text

    stages = {"train_image": (train_image, "ClipVision"), "train_text": (train_text, "ClipText")}
    ratios = {}
    print(
        f"{'':12} {'plain':>12} {'ours':>12} {'ratio':>6}   samples a second, medians of {arguments.repeats}"
    )
    for name, (stage, model) in stages.items():
        if arguments.only in (None, name):
            plain, ours = interleaved(stage, model, arguments)
            ratios[name] = ours / plain
            met = "met" if ratios[name] >= TARGET else "NOT met"
            print(
                f"{name:12} {plain:12.2f} {ours:12.2f} {ratios[name]:6.2f}   at least {TARGET}: {met}",
                flush=True,
            )
    return ratios


class Taken(NamedTuple):
    """Seconds of a run, of reading its pictures alone, and of its encoder alone; peak memory in bytes."""

    all: float
    reading: float
    encoder: float
    peak: int


def by_size(arguments) -> dict[str, float]:
    """Print what an encoder of each size takes of a run's time; returns the pictures a second by size and layers."""
    import data
    import wrappedmodels

    print(heading(arguments))
    print(f"{'encoder':22} {'--layers':>8} {'all':>8} {'reading':>8} {'encoder':>8} {'share':>6} {'GiB':>6}")
    pairs, rates = data.open_pairs("folder", "pictures"), {}
    for size in arguments.sizes:
        precision, device = arguments.encoder_precision, arguments.device
        encoder = wrappedmodels.load(
            "ClipVision", SIZES[size], random_weights=0, device=device, encoder_precision=precision
        )
        for layers in arguments.layers:
            found = [whole_run(encoder, pairs, layers, arguments) for _ in range(arguments.repeats)]
            taken = Taken(*map(statistics.median, zip(*found, strict=True)))
            whole, reading, alone = (len(pairs) / seconds for seconds in taken[:3])
            rates[f"{size}, --layers {layers}"] = whole
            print(
                f"{SIZES[size]:22} {layers:>8} {whole:8.2f} {reading:8.2f} {alone:8.2f} "
                f"{taken.encoder / taken.all:6.2f} {taken.peak / 2**30:6.2f}",
                flush=True,
            )
    return rates


def heading(arguments) -> str:
    """What is measured, and on what."""
    import torch

    cuda = arguments.device.startswith("cuda")
    hardware = (
        torch.cuda.get_device_name(arguments.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    )
    return (
        f"{hardware}; encoder in {arguments.encoder_precision}; {arguments.samples} pictures, batches of {BATCH}, "
        f"--workers {arguments.workers}; pictures a second, medians of {arguments.repeats}; GiB: peak memory of the "
        f"{'GPU' if cuda else 'process so far'}"
    )


def whole_run(encoder, pairs, layers: str, arguments) -> Taken:
    """Train and record; then read the same batches once more, and encode each by itself."""
    import torch

    from training import Settings, train
    from training.activations import Stream

    settings = Settings(top_k=TOP_K, expansion_factor=EXPANSION, batch_size=BATCH)
    with contextlib.redirect_stderr(io.StringIO()):
        options = {"overwrite": True, "workers": arguments.workers}
        runs = []
        whole = seconds(
            lambda: runs.append(train(encoder, pairs, "run", LAYERS[layers], settings, **options))
        )
    manifest = runs[0].manifest
    stream = Stream(encoder, pairs, encoder.resolve_layers(LAYERS[layers]))

    def encode(inputs):
        stream.encode([], inputs)
        if encoder.device.startswith("cuda"):
            torch.cuda.synchronize(encoder.device)

    reading, alone = 0.0, 0.0
    for start in range(0, len(pairs), BATCH):
        rows, batch = range(start, min(start + BATCH, len(pairs))), []
        reading += seconds(lambda rows=rows, batch=batch: batch.append(stream.read(list(rows))[1]))
        inputs = encoder.placed(batch[0])
        alone += seconds(lambda inputs=inputs: encode(inputs))
    return Taken(whole, reading, alone, manifest["peak_gpu_memory"] or manifest["peak_memory"])


def make_data(folder: Path, n_samples: int):
    """JPEG files of a photograph's size and entropy, and captions of a photograph's length."""
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "captions.jsonl", "w") as file:
        for row in range(n_samples):
            coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{row}.jpg", quality=90)
            caption = " ".join(random.choice(WORDS, random.integers(8, 14)))
            file.write(json.dumps({"file": f"{row}.jpg", "caption": caption}) + "\n")


def interleaved(stage, model: str, arguments) -> tuple[float, float]:
    """Samples per second of the plain loop and of ours, taken in turn."""
    plain, ours = [], []
    for _ in range(arguments.repeats):
        plain.append(arguments.samples / seconds(lambda: plain_loop(model, arguments.device)))
        ours.append(arguments.samples / seconds(lambda: our_script(stage, model, arguments)))
    return statistics.median(plain), statistics.median(ours)


def seconds(run) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def our_script(stage, model: str, arguments):
    """The whole of a train script."""
    words = (
        f"--model {model} --checkpoint {CHECKPOINT} --random_weights 0 --dataset folder --data_root pictures"
    )
    words += f" --top_k {TOP_K} --expansion_factor {EXPANSION} --batch_size {BATCH} --overwrite"
    words += f" --workers {arguments.workers} --device {arguments.device}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        stage.main([*words.split(), "--layers", "all", "--runname", "ours"])


def plain_loop(model: str, device: str):
    """Train and record as the original does."""
    import torch

    import data
    import wrappedmodels

    encoder = wrappedmodels.load(model, CHECKPOINT, random_weights=0, device=device)
    pairs = data.open_pairs("folder", "pictures")
    forward = plain_text(encoder) if encoder.modality == "text" else plain_image(encoder)
    items = [lambda row=row: pairs.items(row, encoder.modality)[0] for row in range(len(pairs))]
    batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    saes = {}
    for batch in batches:
        for layer, activations in forward([item() for item in batch]).items():
            sae, optimizer = saes.get(layer) or saes.setdefault(layer, plain_sae(activations))
            optimizer.zero_grad()
            x = activations.flatten(0, 1)
            values, latents = torch.relu((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]).topk(TOP_K)
            feature_acts = x.new_zeros(len(x), len(sae["b_enc"])).scatter(1, latents, values)
            loss = (x - feature_acts @ sae["W_dec"] - sae["b_dec"]).square().mean()
            loss.backward()
            optimizer.step()
    features = {layer: [] for layer in saes}
    with torch.no_grad():
        for batch in batches:
            for layer, activations in forward([item() for item in batch]).items():
                sae, _ = saes[layer]
                codes = torch.relu((activations[:, 0] - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"])
                features[layer].append(codes.half().cpu())
    return {layer: torch.cat(parts) for layer, parts in features.items()}


def plain_sae(activations):
    """An SAE of such activations as four dense parameters, and its own Adam."""
    import torch

    d_in, device = activations.shape[-1], activations.device
    rows = torch.nn.functional.normalize(torch.randn(EXPANSION * d_in, d_in, device=device), dim=1)
    sae = {
        "W_enc": rows.T.contiguous(),
        "b_enc": rows.new_zeros(len(rows)),
        "W_dec": rows.clone(),
        "b_dec": rows.new_zeros(d_in),
    }
    for parameter in sae.values():
        parameter.requires_grad_()
    return sae, torch.optim.Adam(sae.values(), lr=5e-5)


def plain_image(encoder):
    """Pictures one by one through the preprocessing, then the whole tower."""

    def forward(pictures):
        batch = encoder.collate([encoder.preprocess(picture) for picture in pictures])
        return encoder.activations(batch, list(range(encoder.n_layers))).layers

    return forward


def plain_text(encoder):
    """Captions at CLIP's full context of 77, padding and all."""
    import torch

    def forward(captions):
        ids = torch.stack([encoder.preprocess(caption)["input_ids"] for caption in captions])
        return encoder.activations({"input_ids": ids}, list(range(encoder.n_layers))).layers

    return forward


if __name__ == "__main__":
    main()
