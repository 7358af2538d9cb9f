"""The run folder `sae_features/<runname>/`: how a run is written, and how it is read back.

```
run.json                    manifest, written last: its presence means that the run is whole
samples.jsonl               a line a row: {"id", "image", "caption"}
layer11/features-00000.npz  scipy.sparse CSR float32 [rows, d_sae], rows in dataset order, parts in name order
layer11/cfg.json, layer11/sae_weights.safetensors    the SAE (sae.py)
```

The part files are read and written by parts.py, the samples by samples.py, folders of the original code by original.py.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import original
import samples
from parts import Csr, parts
from plumbing import files
from plumbing.errors import UserError, did_you_mean
from samples import Samples

FORMAT_VERSION = 2

IDS_ONLY = 1  # the older format: its fingerprint is of the ids alone, and is computed anew from the samples

ROOT = Path("sae_features")

PART_ROWS = 4096  # rows of one features-*.npz: the most that a killed recording has to do again

MANIFEST = "run.json"

RANDOM_SAE = "random"  # `recipe` of a run whose SAEs are random dictionaries that were never trained

UNFINISHED = "unfinished.json"  # the mark of a command that is not done (training/unfinished.py)


class Encoder(TypedDict, total=False):
    """What run.json says of the encoder."""

    model: str
    checkpoint: str
    modality: str
    blocks: str | None  # as typed; None: the registry's
    random_weights: int | None
    encoder_precision: str  # float32 where a run does not say


class Sizes(TypedDict, total=False):
    """What run.json says of an SAE."""

    d_in: int
    d_sae: int
    k: int  # of a TopK SAE
    architecture: str  # of any other


class Dataset(TypedDict, total=False):
    """What run.json says of the samples."""

    name: str
    fingerprint: str | None
    source: dict[str, Any]  # the arguments of `data.open_pairs`


class Manifest(TypedDict, total=False):
    """What run.json holds; of a folder of the original code, only the first four are known.

    `fvu` to `half_variance_tokens` are by layer (training/quality.py).
    """

    format_version: int
    layers: list[str]
    n_samples: int
    dataset: Dataset
    encoder: Encoder
    unreadable: list[dict[str, str]]
    token: str
    activation: str
    sae: dict[str, Sizes]  # by layer
    training: dict[str, Any]  # the settings
    evaluated_samples: int
    held_out: bool
    fvu: dict[str, float | None]
    fvu_recorded: dict[str, float | None]
    l0: dict[str, float]
    dead_fraction: dict[str, float]
    dense_fraction: dict[str, float]
    half_variance_tokens: dict[str, float | None]
    seconds: float
    samples_per_second: float
    peak_memory: int  # bytes
    peak_gpu_memory: int | None
    device: str
    hardware: str
    threads: int
    processes: int
    versions: dict[str, str]
    command: list[str]


class Run(NamedTuple):
    """A whole run on disk; `layers` are its folders in ascending order (`["layer0", "layer1"]`)."""

    name: str
    path: Path
    manifest: Manifest

    @property
    def layers(self) -> list[str]:
        return self.manifest["layers"]

    @property
    def n_samples(self) -> int:
        return self.manifest["n_samples"]

    @property
    def fingerprint(self) -> str | None:
        """`fingerprint` of the samples; None for a run of the original, which does not name them."""
        return self.manifest["dataset"]["fingerprint"]

    @property
    def caption(self) -> str | int:
        """Which of each row's captions it was recorded on: "first", "all", or a number from 2 on."""
        return (self.manifest["dataset"].get("source") or {}).get("caption") or "first"

    @property
    def is_original(self) -> bool:
        """Whether the original code recorded it."""
        return self.manifest["format_version"] == original.FORMAT_VERSION

    @property
    def data_line(self) -> str:
        """Its data set, where that lies, and its samples: what tells runs that are not comparable apart."""
        dataset = self.manifest["dataset"]
        place = (dataset.get("source") or {}).get("data_root")
        rows = f"fingerprint {self.fingerprint[:12]}" if self.fingerprint else "samples unknown"
        return f"{dataset['name']}{f' at {place}' if place else ''} ({self.n_samples} samples, {rows})"

    def layer(self, number: int) -> str:
        """The layer folder of a number that a user typed; negative ones count from the last recorded layer."""
        name = self.layers[number] if -len(self.layers) <= number < 0 else f"layer{number}"
        if name not in self.layers:
            raise UserError(f"run {self.name!r} has no layer {number}; it has {', '.join(self.layers)}")
        return name

    def score(self, name: str, layer: str) -> float | None:
        """The manifest's `fvu`, `l0`, … of a layer's SAE; None where it does not say."""
        scores = dict(self.manifest).get(name)
        return scores.get(layer) if isinstance(scores, dict) else None

    def d_sae(self, layer: str) -> int:
        """The number of latents of a layer's SAE."""
        return next(self.blocks(layer)).shape[1]

    def blocks(self, layer: str, rows: slice = slice(None)) -> Iterator[Csr]:
        """Yield the layer's features in row order, a block [rows, d_sae] at a time.

        With `rows`, yield only those rows; files that hold none of them are not read.
        """
        first, last, _ = rows.indices(self.n_samples)
        read_parts = original.parts if self.is_original else parts
        start = 0
        for count, read in read_parts(self.path, layer):
            inside = slice(max(first - start, 0), min(last - start, count))
            if inside.start < inside.stop:
                block = read() if inside == slice(0, count) else read()[inside]
                self._require_finite(layer, start + inside.start, block)
                yield block
            start += count
        if start != self.n_samples:
            raise UserError(
                f"run {self.name!r} is damaged: {layer} holds {start} rows and the manifest says "
                f"{self.n_samples}; record it again with --overwrite"
            )

    def _require_finite(self, layer: str, start: int, block: Csr):
        """Refuse a block that holds NaN or infinity; its first row is row `start` of the run."""
        import numpy as np

        if not np.isfinite(block.data).all():
            entry = np.flatnonzero(~np.isfinite(block.data))[0]
            row = start + int(np.searchsorted(block.indptr, entry, side="right")) - 1
            raise UserError(
                f"run {self.name!r} holds {block.data[entry]} in {layer}, row {row}, feature "
                f"{block.indices[entry]}: leave the run out, or record it again with --overwrite"
            )

    def load(self, layer: str) -> Csr:
        """All rows of a layer's features, [n_samples, d_sae]."""
        import scipy.sparse

        return scipy.sparse.vstack(list(self.blocks(layer)), format="csr")

    def samples(self) -> Samples:
        """`ids`, `images` and `captions` (of all captions, the first), a text a row; none for a run of the original."""
        return Samples.none() if self.is_original else samples.read(self.path, self.n_samples)

    def sample_blocks(self) -> Iterator[Samples]:
        """The same, some rows at a time."""
        return iter(()) if self.is_original else samples.blocks(self.path, self.n_samples)


def run_names() -> list[str]:
    """The names of all whole runs, sorted."""
    return sorted(folder.name for folder in ROOT.iterdir() if is_whole(folder)) if ROOT.is_dir() else []


def is_whole(path: Path) -> bool:
    """Whether a folder holds a finished run."""
    if (path / MANIFEST).is_file():
        return True
    return not (path / UNFINISHED).exists() and bool(original.layers(path))


def open_run(name: str) -> Run:
    """Open a recorded run. Errors: no such run, or one that is incomplete, damaged or of another format."""
    path = run_path(name)
    if (path / MANIFEST).is_file():
        return Run(path.name, path, _read_manifest(path))
    if is_whole(path):
        return Run(path.name, path, _original_manifest(path))
    if path.is_dir():
        raise UserError(
            f"run {path.name!r} is incomplete ({path / MANIFEST} is missing): give its train command again to finish it"
        )
    known = ", ".join(run_names()) or "none yet: `uv run train_image.py` records one"
    close = did_you_mean(path.name, run_names(), 0.7)
    raise UserError(f"no run named {path.name!r} in {ROOT}/; {close}recorded runs: {known}")


def run_path(name: str) -> Path:
    """The folder of a run; `name` may be its path, as a shell completes it (`./sae_features/NAME/`)."""
    path = Path(os.path.abspath(name))
    name = path.name if path.parent == ROOT.absolute() else name.rstrip("/")
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", name):
        raise UserError(f"{name!r} is no name for a run: use letters, digits, '.', '_', '+' and '-'")
    return ROOT / name


def fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """sha256 over the rows in order, a line each of id, tab, first caption: which samples a run is of.

    Ids alone are row numbers or file names in many data sets, so two unrelated ones would pass for one.
    """
    digest = hashlib.sha256()
    for name, caption in rows:
        digest.update(f"{name}\t{caption}\n".encode())
    return digest.hexdigest()


def check_aligned(runs: list[Run]):
    """Refuse runs whose rows are not the same samples in the same order, where the runs name their samples."""
    known = [run for run in runs if run.fingerprint] or runs
    for run in runs:
        if run.fingerprint is None:
            print(
                f"run {run.name!r} does not name its samples: only their number is compared", file=sys.stderr
            )
    for other in runs:
        same = other.fingerprint in (None, known[0].fingerprint)
        if other.n_samples != known[0].n_samples or not same:
            raise UserError(
                f"runs {known[0].name!r} and {other.name!r} are not comparable: {known[0].data_line} against "
                f"{other.data_line}; record both on the same --dataset, --data_root and --limit"
            )


def finish_run(path: Path, manifest: Mapping[str, object]) -> Run:
    """Write the manifest, which makes the run whole, and open it."""
    whole = {"format_version": FORMAT_VERSION, **manifest}
    files.write_text(path / MANIFEST, json.dumps(whole, indent=2) + "\n")
    return open_run(path.name)


def _original_manifest(path: Path) -> Manifest:
    dataset = Dataset(name="data of the original code", fingerprint=None)
    return Manifest(
        format_version=original.FORMAT_VERSION,
        layers=original.layers(path),
        n_samples=original.n_samples(path),
        dataset=dataset,
    )


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path / MANIFEST} is damaged ({error}); record the run again with --overwrite"
        ) from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version not in (IDS_ONLY, FORMAT_VERSION):
        raise UserError(
            f"run {path.name!r} has format version {version} and this toolkit reads {FORMAT_VERSION}; "
            "record it again with --overwrite"
        )
    _check_manifest(path, manifest)
    if version == IDS_ONLY:
        known = samples.read(path, manifest["n_samples"])
        known_fingerprint = fingerprint(zip(known.ids, known.captions, strict=True))
        return manifest | {"dataset": manifest["dataset"] | {"fingerprint": known_fingerprint}}
    return manifest


def _check_manifest(path: Path, manifest: Manifest):
    """Refuse a manifest in which what every reader needs is missing or of another type."""

    def holds_texts(key: str, *names: str) -> bool:
        entry = manifest.get(key)
        return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in names)

    layers, n_samples = manifest.get("layers"), manifest.get("n_samples")
    right = {
        "layers": isinstance(layers, list) and bool(layers) and all(isinstance(name, str) for name in layers),
        "n_samples": type(n_samples) is int and n_samples > 0,
        "dataset": holds_texts("dataset", "name", "fingerprint"),
        "encoder": holds_texts("encoder", "model", "checkpoint", "modality"),
    }
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise UserError(
            f"{path / MANIFEST} is damaged ({', '.join(wrong)}: missing, or not of its type); record the run again "
            "with --overwrite"
        )
