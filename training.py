"""Fit SAEs on an encoder's hooked activations, every layer from one forward pass, then record all features."""

import argparse
import importlib.metadata
import math
import platform
import resource
import sys
import time
from argparse import ArgumentTypeError as UserError  # one line on stderr, exit code 2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

import data
import features
import wrappedmodels
from activations import Batch, Stream
from quality import Quality, Scores
from sae import TopKSAE

STATISTICS_BATCHES = 8  # whose tokens give each layer's mean and scale
HELD_OUT = 1000  # samples at most, and a twentieth at most, that never train: FVU, L0 and dead are theirs
WARM_UP, DECAY = 0.05, 0.2  # the shares of the steps in which the learning rate rises and falls
DEAD_SHARE, DEAD_TOKENS = 0.05, 10_000_000  # dead: no firing in this share of the run, or in so many tokens
REPORT_EVERY = 20  # steps between looks at the loss: each look waits for the device


class Settings(NamedTuple):
    """What decides a run's numbers besides its encoder and its data; run.json's `training`."""

    layers: list[int]
    token: str
    activation: str
    top_k: int
    expansion_factor: int
    batch_size: int
    epochs: int
    lr: float | None
    seed: int


class Job(NamedTuple):
    """One run to be: its folder and what it is trained with. Jobs of one command share every activation."""

    folder: Path
    settings: Settings


def run(arguments: argparse.Namespace) -> list[features.Run]:
    """Train and record what the command line asks for: a run for each seed and each k."""
    started = time.monotonic()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = wrappedmodels.load(
        arguments.model,
        arguments.checkpoint,
        token=arguments.token,
        random_weights=arguments.random_weights,
        device=device,
    )
    pairs = data.from_arguments(arguments)
    jobs = plan_jobs(arguments, encoder, pairs)
    stream = Stream(encoder, pairs, jobs[0].settings.layers, arguments.workers, device)
    held_out = held_out_rows(len(pairs), jobs[0].settings.seed)
    try:
        saes = fit(stream, jobs, held_out)
        scores = record(stream, jobs, saes, held_out)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU is out of memory: lower --batch_size (now {jobs[0].settings.batch_size}), or choose fewer --layers"
        ) from error
    cost = costs(started, len(pairs), device)
    runs = [
        finish(stream, job, sae, score, held_out, cost)
        for job, sae, score in zip(jobs, saes, scores, strict=True)
    ]
    for recorded in runs:
        print(table(recorded))
    return runs


def plan_jobs(arguments: argparse.Namespace, encoder: Any, pairs: Any) -> list[Job]:
    """One job for each seed and each k; with several of either, its value ends the run's name."""
    row = wrappedmodels.REGISTRY[arguments.model]
    top_ks = arguments.top_k or [row.top_k]
    base = arguments.runname or default_name(arguments, pairs)
    jobs = []
    for seed in arguments.seeds:
        for top_k in top_ks:
            settings = Settings(
                layers=encoder.resolve_layers(arguments.layers),
                token=encoder.token,
                activation=arguments.activation,
                top_k=top_k,
                expansion_factor=arguments.expansion_factor or row.expansion_factor,
                batch_size=arguments.batch_size,
                epochs=arguments.epochs,
                lr=arguments.lr,
                seed=seed,
            )
            name = base + f"_k{top_k}" * (len(top_ks) > 1) + f"_seed{seed}" * (len(arguments.seeds) > 1)
            jobs.append(Job(features.start_run(name, arguments.overwrite), settings))
    return jobs


def default_name(arguments: argparse.Namespace, pairs: Any) -> str:
    """The encoder and the data set: `clipvision_coco`, `clipvision-vit-b-32-quickgelu_coco`, `clipvision_demo`."""
    name = arguments.model.lower()
    if pairs.name == "demo":
        name = name.removeprefix("demo")
    if arguments.checkpoint not in (None, wrappedmodels.REGISTRY[arguments.model].checkpoint):
        name += "-" + "".join(
            c if c.isalnum() else "-" for c in arguments.checkpoint.lower().split(":")[-1]
        ).strip("-")
    if arguments.random_weights is not None:
        name += f"-random{arguments.random_weights}"
    return f"{name}_{pairs.name}"


def held_out_rows(n_samples: int, seed: int) -> Bool[np.ndarray, " sample"]:
    """Which samples never train. The same for every encoder on the same data; none where there are under 20."""
    held_out = np.zeros(n_samples, dtype=bool)
    chosen = np.random.default_rng(seed).permutation(n_samples)[: min(HELD_OUT, n_samples // 20)]
    held_out[chosen] = True
    return held_out


# ---------------------------------------------------------------------------------------------- training


class Standardizer(NamedTuple):
    """A layer's mean [d_in] and one scale, so that z = (x - mean) / scale has E|z|^2 = d_in.

    Latents die first where activations are not centred; the scale lets one learning rate suit every layer.
    """

    mean: Float[Tensor, " d_in"]
    scale: float

    def __call__(self, tokens: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        return (tokens - self.mean) / self.scale


class LayerTrainer:
    """One SAE in training on standardised tokens."""

    def __init__(self, sae: TopKSAE, lr: float, n_steps: int, dead_after: int):
        self.sae, self.lr, self.n_steps, self.dead_after = sae, lr, n_steps, dead_after
        fused = sae.W_enc.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=lr, fused=fused)
        self.since_fired = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.W_enc.device)
        self.steps_done = 0
        self.start_report()

    def start_report(self):
        """Forget the running sums that the progress bar shows."""
        self.loss = self.squared_error = self.squares = 0.0

    def step(self, z: Float[Tensor, "token d_in"]):
        """One Adam step; nothing here waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * schedule(self.steps_done / self.n_steps)
        done = self.sae.step_gradients(z, self.since_fired > self.dead_after)
        self.sae.remove_parallel_gradient()
        self.optimizer.step()
        self.sae.normalize_decoder()
        self.since_fired = (self.since_fired + len(z)).masked_fill_(done.fired > 0, 0)
        self.steps_done += 1
        self.loss += done.loss
        self.squared_error += done.squared_error
        self.squares += z.square().sum()

    def report(self) -> tuple[float, float, float]:
        """Loss, FVU and dead fraction since the last report; waits for the device."""
        # z is centred already: its squares are its variance
        fvu = float(self.squared_error / self.squares)
        return float(self.loss), fvu, float((self.since_fired > self.dead_after).float().mean())


def schedule(done: float) -> float:
    """The learning rate's factor after the share `done` of all steps: up, flat, down to zero, all linear."""
    return min(1.0, (done + 1e-3) / WARM_UP, (1 - done) / DECAY)


def training_plan(held_out: Bool[np.ndarray, " sample"], settings: Settings) -> list[list[int]]:
    """The rows of every batch of all epochs: each epoch shuffles the samples that are not held out."""
    random = np.random.default_rng([settings.seed, 1])
    rows = np.flatnonzero(~held_out)
    plan = []
    for _ in range(settings.epochs):
        order = random.permutation(rows).tolist()
        plan += [order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)]
    return plan


def standardizers(stream: Stream, plan: list[list[int]]) -> tuple[dict[int, Standardizer], float]:
    """Each layer's standardiser from the first batches, and the mean number of tokens in a batch."""
    tokens: dict[int, list[Tensor]] = {layer: [] for layer in stream.layers}
    for batch in stream.batches(plan[:STATISTICS_BATCHES]):
        chosen = batch.real_tokens()
        for layer in stream.layers:
            tokens[layer].append(batch.flat(layer, chosen).cpu())
    found = {}
    for layer, parts in tokens.items():
        x = torch.cat(parts).double()
        if not x.isfinite().all():
            raise UserError(
                f"layer {layer} gives NaN or infinite activations in the first {STATISTICS_BATCHES} batches"
            )
        mean = x.mean(0)
        scale = float((x - mean).square().mean().sqrt()) or 1.0
        found[layer] = Standardizer(mean.float().to(batch.mask.device), scale)
    return found, len(x) / min(len(plan), STATISTICS_BATCHES)


def fit(stream: Stream, jobs: list[Job], held_out: Bool[np.ndarray, " sample"]) -> list[dict[int, TopKSAE]]:
    """Train every job's SAEs; returns `{layer: sae}` for each job, and saves them in its folder."""
    settings = jobs[0].settings
    plan = training_plan(held_out, settings)
    standard, batch_tokens = standardizers(stream, plan)
    trainers = [make_trainers(job, standard, len(plan), batch_tokens) for job in jobs]
    every = [(layer, trainer) for one in trainers for layer, trainer in one.items()]
    progress = tqdm(stream.batches(plan), total=len(plan), desc="train", unit="batch", file=sys.stderr)
    for number, batch in enumerate(progress, 1):
        chosen = batch.real_tokens()
        for layer in stream.layers:
            z = standard[layer](batch.flat(layer, chosen))
            for one in trainers:
                one[layer].step(z)
        if number % REPORT_EVERY == 0 or number == len(plan):
            show_progress(progress, every, number)
    saes = [{layer: trainer.sae for layer, trainer in one.items()} for one in trainers]
    for job, one in zip(jobs, saes, strict=True):
        for layer, sae in one.items():
            sae.fold_standardizer(*standard[layer])
            sae.save(job.folder / f"layer{layer}", sae_metadata(stream, layer))
    return saes


def make_trainers(job: Job, standard: dict, n_steps: int, batch_tokens: float) -> dict[int, LayerTrainer]:
    """A trainer for each layer of a job, widths asked of the activations."""
    settings, trainers = job.settings, {}
    for layer, standardizer in standard.items():
        d_in = len(standardizer.mean)
        d_sae = settings.expansion_factor * d_in
        sae = TopKSAE(d_in, d_sae, settings.top_k, seed=1000 * settings.seed + layer).to(
            standardizer.mean.device
        )
        # 2e-4 at 2^14 latents and wider ones slower (Gao et al. 2024, arXiv 2406.04093, section 2.3)
        lr = settings.lr or 2e-4 / math.sqrt(d_sae / 2**14)
        dead_after = min(DEAD_TOKENS, int(DEAD_SHARE * n_steps * batch_tokens))
        trainers[layer] = LayerTrainer(sae, lr, n_steps, dead_after)
    return trainers


def show_progress(progress: tqdm, every: list[tuple[int, LayerTrainer]], number: int):
    """Put the layers' mean loss, FVU and dead fraction on the bar; stop at a loss that is not finite."""
    reports = []
    for layer, trainer in every:
        reports.append(trainer.report())
        if not math.isfinite(reports[-1][0]):
            raise UserError(
                f"layer {layer} has NaN or infinite activations, or its loss diverged, "
                f"within batches {number - REPORT_EVERY + 1} to {number}: lower --lr, or look at the data"
            )
        trainer.start_report()
    loss, fvu, dead = np.mean(reports, axis=0)
    progress.set_postfix(loss=f"{loss / REPORT_EVERY:.4f}", fvu=f"{fvu:.3f}", dead=f"{dead:.3f}")


def sae_metadata(stream: Stream, layer: int) -> dict[str, Any]:
    """What an SAE's cfg.json says of where it comes from."""
    encoder = stream.encoder
    return {
        "model_name": encoder.checkpoint,
        "hook_name": f"{encoder.model}.layer{layer}",
        "dataset_path": stream.pairs.name,
    }


# --------------------------------------------------------------------------------------------- recording


def record(
    stream: Stream, jobs: list[Job], saes: list[dict[int, TopKSAE]], held_out: Bool[np.ndarray, " sample"]
) -> list[dict[int, Scores]]:
    """Write every sample's features in row order; returns each job's scores by layer on the held-out samples."""
    for job in jobs:
        features.write_samples(job.folder, described(stream.pairs))
    judged = held_out if held_out.any() else ~held_out
    qualities = [
        {layer: Quality(sae.b_dec.detach(), sae.d_sae) for layer, sae in one.items()} for one in saes
    ]
    parts = [{layer: [] for layer in stream.layers} for _ in jobs]
    plan = recording_plan(len(stream.pairs), jobs[0].settings.batch_size)
    for batch in tqdm(stream.batches(plan), total=len(plan), desc="record", unit="batch", file=sys.stderr):
        pooling = Pooling(batch)
        items = torch.from_numpy(judged[batch.rows]).to(batch.mask.device)[batch.row_of_item]
        chosen = batch.real_tokens(items)
        for i, job in enumerate(jobs):
            for layer in stream.layers:
                parts[i][layer].append(
                    pooling.features(batch, layer, saes[i][layer], job.settings.activation)
                )
                if len(chosen):
                    evaluate(qualities[i][layer], saes[i][layer], batch.flat(layer, chosen))
        write_full_parts(jobs, parts, last_row=batch.rows[-1], n_samples=len(stream.pairs))
    return [{layer: quality.scores() for layer, quality in one.items()} for one in qualities]


def described(pairs: Any) -> list[dict[str, str]]:
    """The rows of samples.jsonl."""
    return [{"id": row.id, "image": row.file, "caption": row.captions[0]} for row in pairs.samples]


def recording_plan(n_samples: int, batch_size: int) -> list[list[int]]:
    """Batches of rows in order, none of them across the border of two part files."""
    plan = []
    for start in range(0, n_samples, features.PART_ROWS):
        stop = min(start + features.PART_ROWS, n_samples)
        plan += [list(range(i, min(i + batch_size, stop))) for i in range(start, stop, batch_size)]
    return plan


class Pooling:
    """From tokens' codes to rows' features: the weighted mean of the codes of each row's recorded tokens."""

    def __init__(self, batch: Batch):
        weights = batch.pool.flatten()
        self.chosen = weights.nonzero().squeeze(1)
        rows = batch.row_of_item.repeat_interleave(batch.pool.shape[1])[self.chosen].cpu().numpy()
        items = np.bincount(batch.row_of_item.cpu().numpy(), minlength=len(batch.rows))
        shares = weights[self.chosen].cpu().numpy().astype(np.float32) / items[rows].astype(np.float32)
        columns = np.arange(len(rows))
        self.mean = scipy.sparse.csr_array((shares, (rows, columns)), shape=(len(batch.rows), len(rows)))

    @torch.no_grad()
    def features(self, batch: Batch, layer: int, sae: TopKSAE, activation: str) -> scipy.sparse.csr_array:
        """A batch's features [row, d_sae], CSR float32."""
        tokens = batch.flat(layer, self.chosen)
        if activation == "relu":
            return scipy.sparse.csr_array(self.mean @ sae.pre_acts(tokens).relu().cpu().numpy())
        values, latents = (part.cpu().numpy() for part in sae.encode_topk(tokens))
        ends = np.arange(0, values.size + 1, sae.k)
        codes = scipy.sparse.csr_array(
            (values.ravel(), latents.ravel(), ends), shape=(len(tokens), sae.d_sae)
        )
        codes.eliminate_zeros()
        return scipy.sparse.csr_array(self.mean @ codes)


@torch.no_grad()
def evaluate(quality: Quality, sae: TopKSAE, tokens: Float[Tensor, "token d_in"]):
    """Add tokens to an SAE's scores."""
    feature_acts = sae.encode(tokens)
    quality.update(tokens, sae.decode(feature_acts), (feature_acts > 0).sum(0).double())


def write_full_parts(jobs: list[Job], parts: list[dict[int, list]], last_row: int, n_samples: int):
    """At the last row of a part, write that part of every layer."""
    if (last_row + 1) % features.PART_ROWS and last_row + 1 < n_samples:
        return
    for job, layers in zip(jobs, parts, strict=True):
        for layer, blocks in layers.items():
            whole = scipy.sparse.csr_array(scipy.sparse.vstack(blocks, format="csr"))
            features.write_part(job.folder, f"layer{layer}", last_row // features.PART_ROWS, whole)
            blocks.clear()


# -------------------------------------------------------------------------------------- the finished run


def finish(
    stream: Stream, job: Job, saes: dict, scores: dict, held_out: np.ndarray, cost: dict
) -> features.Run:
    """Write the manifest, which makes the run whole."""
    encoder, pairs, settings = stream.encoder, stream.pairs, job.settings
    names = {layer: f"layer{layer}" for layer in stream.layers}
    manifest = {
        "encoder": {
            "model": encoder.model,
            "checkpoint": encoder.checkpoint,
            "modality": encoder.modality,
        },
        "layers": list(names.values()),
        "n_samples": len(pairs),
        "dataset": {"name": pairs.name, "fingerprint": pairs.fingerprint, "source": pairs.source},
        "token": encoder.token,
        "activation": settings.activation,
        "sae": {
            names[layer]: {"d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k} for layer, sae in saes.items()
        },
        "training": settings._asdict(),
        "evaluated_samples": int(held_out.sum()) or len(pairs),
        "held_out": bool(held_out.any()),
        **{
            field: {names[layer]: finite(getattr(score, field)) for layer, score in scores.items()}
            for field in Scores._fields
        },
        **cost,
    }
    return features.finish_run(job.folder, manifest)


def finite(number: float) -> float | None:
    """JSON has no NaN."""
    return number if math.isfinite(number) else None


def costs(started: float, n_samples: int, device: str) -> dict[str, Any]:
    """Seconds, samples per second, peak memory in bytes, hardware and versions."""
    seconds = time.monotonic() - started
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    cuda = device.startswith("cuda")
    return {
        "seconds": round(seconds, 3),
        "samples_per_second": round(n_samples / seconds, 3),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_gpu_memory": torch.cuda.max_memory_allocated() if cuda else None,
        "hardware": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("torch", "transformers", "open_clip_torch", "numpy", "scipy")
            },
        },
    }


def table(recorded: features.Run) -> str:
    """The run's scores by layer, and what it cost, for a person."""
    manifest = recorded.manifest
    rows = [f"{'layer':<8} {'d_sae':>7} {'FVU':>7} {'L0':>7} {'dead':>7} {'dense':>7}"]
    for layer in recorded.layers:
        fvu, l0, dead, dense = (manifest[field][layer] for field in Scores._fields)
        shown = "   none" if fvu is None else f"{fvu:7.3f}"
        rows.append(
            f"{layer:<8} {manifest['sae'][layer]['d_sae']:>7} {shown} {l0:7.1f} {dead:7.3f} {dense:7.3f}"
        )
    kind = "held-out samples" if manifest["held_out"] else "samples, which it was trained on too"
    rows.append(
        f"run {recorded.name}: {recorded.n_samples} samples of {manifest['dataset']['name']} in "
        f"{manifest['seconds']:.0f} s ({manifest['samples_per_second']:.0f} a second), "
        f"{manifest['peak_memory'] / 2**30:.1f} GiB; scores on {manifest['evaluated_samples']} {kind}; {recorded.path}/"
    )
    return "\n".join(rows)
