"""Finish a run: write its samples, its training curve and run.json, and make the table that is printed of it."""

import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import torch

import features
import samples
from plumbing.processes import highest, team
from sae import TopKSAE
from saelens import SAE
from training import log
from training.division import SharedOut
from training.quality import FEW, Scores, finite
from training.work import Work


def finish(
    work: Work,
    number: int,
    saes: Mapping[int, SAE],
    scores: dict[int, Scores],
    measured: dict[str, object],
) -> features.Run:
    """Write a job's samples, training curve and manifest, which makes the run whole.

    `measured` goes into the manifest too: `costs` and the command.
    """
    from training import curve  # it imports matplotlib

    folder = work.jobs[number].folder
    samples.write(folder, sample_rows(work))
    if lines := log.read(folder):
        curve.draw(folder / "training_curve.png", lines)
    return features.finish_run(folder, manifest(work, number, saes, scores) | measured)


def sample_rows(work: Work) -> Iterator[dict[str, str]]:
    """The lines of samples.jsonl."""
    for row in work.stream.pairs.samples:
        yield {"id": row.id, "image": row.file, "caption": row.captions[0]}


def manifest(
    work: Work, number: int, saes: Mapping[int, SAE], scores: dict[int, Scores]
) -> dict[str, object]:
    """run.json of a job, without what was measured on the way."""
    job, encoder, pairs = work.jobs[number], work.stream.encoder, work.stream.pairs
    names, training = {layer: f"layer{layer}" for layer in saes}, work.described(job)
    return {
        "encoder": {
            "model": encoder.model,
            "checkpoint": encoder.checkpoint,
            "modality": encoder.modality,
            **encoder.asked,
        },
        "layers": list(names.values()),
        "n_samples": len(pairs),
        "dataset": {"name": pairs.name, "fingerprint": pairs.fingerprint, "source": pairs.source},
        "unreadable": pairs.unreadable,
        "token": encoder.token,
        "activation": activation(job.settings.activation, saes),
        "sae": {names[layer]: sizes(sae) for layer, sae in saes.items()},
        "training": {
            key: value for key, value in training.items() if not work.sae or key in ("sae", "data_seed")
        },
        "evaluated_samples": int(work.judged().sum()),
        "held_out": bool(work.held_out.any()) and not work.sae,
        **shared_out(work),
        **{
            field: {names[layer]: finite(getattr(score, field)) for layer, score in scores.items()}
            for field in Scores._fields
        },
    }


def activation(asked: str, saes: Mapping[int, SAE]) -> str:
    """Which codes are recorded: relu, or the architectures of the SAEs whose own codes they are (topk, jumprelu)."""
    return asked if asked == "relu" else "+".join(sorted({sae.architecture for sae in saes.values()}))


def sizes(sae: SAE) -> features.Sizes:
    """An SAE's sizes for run.json; of another kind than TopK, its architecture in place of k."""
    if isinstance(sae, TopKSAE):
        return {"d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k}
    return {"d_in": sae.d_in, "d_sae": sae.d_sae, "architecture": sae.architecture}


def costs(work: Work) -> dict[str, object]:
    """Seconds, samples per second, peak memory in bytes (of the process with the highest), hardware, versions."""
    seconds = time.monotonic() - work.started
    own = work.stream.encoder.device
    device = own if own.startswith("cuda") else None
    packages = ("torch", "transformers", "open_clip_torch", "numpy", "scipy")
    return {
        "seconds": round(seconds, 3),
        "samples_per_second": round(len(work.stream.pairs) / seconds, 3),
        "peak_memory": peak_memory(),
        "peak_gpu_memory": peak_gpu_memory(own),
        "device": own,
        "hardware": torch.cuda.get_device_name(device) if device else f"{platform.machine()} CPU",
        "float32_products": float32_products_of(device) if device else None,
        "threads": torch.get_num_threads(),
        "processes": team().world,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def float32_products_of(gpu: str) -> str:
    """What a GPU makes of torch's "high" precision, in which float32 products are: tf32 on NVIDIA's from Ampere on."""
    return "tf32" if not torch.version.hip and torch.cuda.get_device_capability(gpu) >= (8, 0) else "float32"


def shared_out(work: Work) -> SharedOut:
    """How the processes trained, as `fit` has noted it; nothing of SAEs that were given or not trained."""
    file = work.state().shared_out_file
    if not file.exists():
        return {"shared_out": None, "bytes_sent_per_step": 0, "bytes_held": 0}
    return json.loads(file.read_text(encoding="utf-8"))


def peak_memory() -> int:
    """The highest memory in bytes so far, of the process with the highest."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return int(highest(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def peak_gpu_memory(device: str) -> int | None:
    """The highest memory of a GPU so far, likewise; None where the encoder is on none."""
    return int(highest(torch.cuda.max_memory_allocated(device))) if device.startswith("cuda") else None


def cautions(manifest: features.Manifest) -> list[str]:
    """Warnings about layers whose scores are bad or would mislead, a line each."""
    lines, training = [], manifest["training"]
    for field, tokens in (("fvu", "all tokens"), ("fvu_recorded", "the recorded tokens")):
        if bad := [layer for layer, fvu in manifest[field].items() if (fvu or 0) > 1]:
            cause = "is --sae of this encoder and these layers?" if training["sae"] else "lower --lr"
            if training.get("recipe") == features.RANDOM_SAE:
                cause = "a random dictionary need not fit"
            lines.append(
                f"{', '.join(bad)}: an FVU of {tokens} above 1 is worse than their mean: "
                + (cause if field == "fvu" else "the SAE does not fit what is recorded")
            )
    for layer, share in manifest["half_variance_tokens"].items():
        if share is not None and share < FEW:
            lines.append(
                f"{layer}: {share:.2%} of the tokens hold half of the variance, so that FVU tells of these few; "
                "see FVU rec"
            )
    return lines


def table(recorded: features.Run) -> str:
    """The table that is printed of a run: its scores by layer, and what it cost."""
    manifest = recorded.manifest
    head = f"{'layer':<8} {'d_sae':>7} {'FVU':>7} {'FVU rec':>7} {'L0':>7} {'dead':>7} {'dense':>7}"
    lines = [head]
    for layer in recorded.layers:
        fvus = manifest["fvu"][layer], manifest["fvu_recorded"][layer]
        fits = " ".join(f"{'-':>7}" if fvu is None else f"{fvu:7.3f}" for fvu in fvus)
        width = manifest["sae"][layer]["d_sae"]
        fractions = f"{manifest['dead_fraction'][layer]:7.3f} {manifest['dense_fraction'][layer]:7.3f}"
        lines.append(f"{layer:<8} {width:>7} {fits} {manifest['l0'][layer]:7.1f} {fractions}")
    kind = "held-out samples" if manifest["held_out"] else "samples, which it was trained on too"
    if manifest["training"]["sae"]:
        kind = "samples, which --sae may have been trained on"
    lines.append(f"scores on {manifest['evaluated_samples']} {kind}; FVU rec: of the recorded tokens alone")
    lines += cautions(manifest)
    memory = manifest["peak_gpu_memory"] or manifest["peak_memory"]
    lines.append(
        f"run {recorded.name}: {recorded.n_samples} samples of {manifest['dataset']['name']}, "
        f"{manifest['seconds']:.0f} s ({manifest['samples_per_second']:.0f} samples a second), "
        f"{memory / 2**30:.1f} GiB on {manifest['hardware']}; in {recorded.path}/"
    )
    return "\n".join(lines)
