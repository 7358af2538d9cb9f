"""Runs made by hand for tests: features given as arrays, written as a recorded run is."""

import numpy as np
import scipy.sparse

import features
import parts
import samples
from plumbing import files
from training import unfinished


def empty_folder(name):
    """The folder of a run that is to be written; what there was of a run of that name is removed."""
    path = features.run_path(name)
    files.make_folder(path)
    unfinished.clear(path)
    return path


def make_run(
    name, layers, ids=None, modality="image", source=None, part_rows=None, captions=None, **manifest
):
    """Record `layers`, {"layer0": [n_samples, d_sae] array}, as a whole run in the current folder's sae_features/."""
    n_samples = len(next(iter(layers.values())))
    ids = ids or [f"sample{row}" for row in range(n_samples)]
    captions = captions or [f"caption {row}" for row in range(n_samples)]
    path = empty_folder(name)
    samples.write(
        path, [{"id": i, "image": f"{i}.png", "caption": text} for i, text in zip(ids, captions, strict=True)]
    )
    for layer, codes in layers.items():
        step = part_rows or n_samples
        for number, start in enumerate(range(0, n_samples, step)):
            block = np.asarray(codes, dtype=np.float32)[start : start + step]
            parts.write_part(path, layer, number, scipy.sparse.csr_array(block))
    fingerprint = features.fingerprint(zip(ids, captions, strict=True))
    dataset = {
        "name": manifest.pop("dataset_name", "handmade"),
        "fingerprint": fingerprint,
        "source": source or {},
    }
    encoder = {"model": name, "checkpoint": "none", "modality": modality}
    whole = {
        "encoder": encoder,
        "layers": list(layers),
        "n_samples": n_samples,
        "dataset": dataset,
        **manifest,
    }
    return features.finish_run(path, whole)
