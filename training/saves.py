"""The SAEs of a run folder: written beside its features, and read back from there or from elsewhere."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from plumbing.processes import team, wait_for_all
from sae import WEIGHTS_FILE
from saelens import SAE, load
from training.work import Job, Work


def save_saes(work: Work, saes: Sequence[Mapping[int, SAE]], apart: bool = False):
    """Save every job's SAEs in its folder; returns, in every process, when they are there.

    `apart`: each process has SAEs of its own, and saves them; otherwise all have the same.
    """
    if apart or team().rank == 0:
        for job, layers in zip(work.jobs, saes, strict=True):
            folders = layer_folders(work, job)
            for layer, sae in layers.items():
                sae.save(folders[layer], metadata(work, layer))
    wait_for_all()


def metadata(work: Work, layer: int) -> dict[str, str]:
    """Where an SAE comes from, by SAELens' names; part of its cfg.json."""
    encoder = work.stream.encoder
    hook = f"{encoder.model}.layer{layer}"
    return {
        "model_name": encoder.checkpoint,
        "hook_name": hook,
        "dataset_path": work.stream.pairs.name,
    }


def layer_folders(work: Work, job: Job) -> dict[int, Path]:
    """The folder of each of a job's SAEs, by layer."""
    return {layer: job.folder / f"layer{layer}" for layer in work.stream.layers}


def load_saes(
    work: Work, folders: dict[int, Path], input_scales: Mapping[int, float] | None = None
) -> dict[int, SAE]:
    """Load saved SAEs, by layer, onto the encoder's device; `input_scales` of those layers that need one."""
    device, scales = work.stream.encoder.device, input_scales or {}
    return {layer: load(folder, scales.get(layer)).to(device) for layer, folder in folders.items()}


def load_all(work: Work) -> list[dict[int, SAE]]:
    """The SAEs of each job, by layer, that have been saved.

    Where there is an SAE for each of several processes, which share a machine's memory, none holds the decoders, half of
    all weights: see `decoder_of`. A GPU has room for them, and would wait while they are read.
    """
    saes = [dict[int, SAE]() for _ in work.jobs]
    n_saes, on_cpu = len(work.jobs) * len(work.stream.layers), work.stream.encoder.device == "cpu"
    lean = on_cpu and n_saes >= team().world > 1
    for job, found in zip(work.jobs, saes, strict=True):
        for layer, folder in layer_folders(work, job).items():
            found |= load_saes(work, {layer: folder})
            if lean:
                leave_decoder(found[layer])
    return saes


def leave_decoder(sae: SAE):
    """Free an SAE's decoder, which stays in its file."""
    sae.W_dec.data = sae.W_dec.new_empty(0, sae.d_in)


@contextlib.contextmanager
def decoder_of(sae: SAE, folder: Path) -> Iterator[None]:
    """Have the decoder of an SAE, which is saved in `folder`, in memory meanwhile, wherever it was before."""
    if len(sae.W_dec):
        yield
        return
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        sae.W_dec.data = file.get_tensor("W_dec").clone()
    try:
        yield
    finally:
        leave_decoder(sae)
