"""The SAEs of a run folder: written beside its features, and read back from there or from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from plumbing.processes import team, wait_for_all
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
