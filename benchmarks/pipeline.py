"""Samples per second of a whole train_image and train_text against a plain loop, B/32 size, all 12 layers.

The plain loop is written as the method's public code is: pictures decoded in the main process, captions padded to 77
tokens and the padding trained on, one dense autograd step and one Adam (5e-5) for each SAE, then a second pass that
encodes each sample's first token with ReLU into dense half-precision rows. It is given the benefit of no_grad around
the encoder, and writes no files. Ours does all that its run folder needs. Both load the encoder (random weights: the
speed is the same) in the time that is measured, and both read the same 640 x 480 JPEG files.
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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.commandline import Parser, positive, script

TARGET = 2.5
CHECKPOINT, EXPANSION, TOP_K, BATCH = "ViT-B/32-quickgelu", 8, 32, 16
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
    """Print the table; returns the ratio by script."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--samples", type=positive, default=1024, help="an epoch of 64 batches")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--only", choices=("train_image", "train_text"))
    parser.add_argument("--workers", default="0", help="of ours; the plain loop decodes in its own process")
    parser.add_argument("--device", help="of both; by default a GPU where there is one")
    arguments = parser.parse_args(argv)
    from plumbing.processes import own_device

    arguments.device = own_device(arguments.device)
    import train_image
    import train_text

    stages = {"train_image": (train_image, "ClipVision"), "train_text": (train_text, "ClipText")}
    ratios = {}
    print(
        f"{'':12} {'plain':>12} {'ours':>12} {'ratio':>6}   samples a second, medians of {arguments.repeats}"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data(Path("pictures"), arguments.samples)
        for name, (stage, model) in stages.items():
            if arguments.only in (None, name):
                plain, ours = interleaved(stage, model, arguments)
                ratios[name] = ours / plain
                met = "met" if ratios[name] >= TARGET else "NOT met"
                print(
                    f"{name:12} {plain:12.2f} {ours:12.2f} {ratios[name]:6.2f}   at least {TARGET}: {met}",
                    flush=True,
                )
        os.chdir("/")
    return ratios


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
