"""The run folder: `sae_features/<runname>/`, how it is written, and how it is read back.

```
run.json                    manifest, written last: its presence means that the run is whole
samples.jsonl               a line a row: {"id", "image", "caption"}
layer11/features-00000.npz  scipy.sparse CSR float32 [rows, d_sae], rows in dataset order, parts in name order
layer11/cfg.json, layer11/sae_weights.safetensors    the SAE (sae.py)
```

Folders of the method's first public code (`layer11.pt`: dense half precision [n_samples, d_sae], no manifest) are
read too, so that old recordings can be compared.
"""

import fnmatch
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plumbing.errors import UserError
from plumbing.files import TEMPORARY, make_folder, replacing, sync, write_text

FORMAT_VERSION = 2

SAMPLES_AS_IDS = (
    1  # the format whose fingerprint was of the ids alone, and is worked out anew from the samples
)

ROOT = Path("sae_features")

PART_ROWS = 4096  # rows in one features-*.npz: what a killed recording has to do again at most

MANIFEST, UNFINISHED, LOCK = "run.json", "unfinished.json", "unfinished.lock"

# What a run consists of, besides its mark and its lock: the files of its folder, and of the folders in it.
FILES = (MANIFEST, "samples.jsonl", "training_curve.png", "layer*.pt", "unfinished-*", *TEMPORARY)

FOLDERS = {
    "layer*": ("features-*.npz", "cfg.json", "sae_weights.safetensors", *TEMPORARY),
    "pairs": ("*.json", *TEMPORARY),
}


class Run(NamedTuple):
    """A whole run on disk.

    `manifest` is run.json; `layers` are folder names in ascending order (`["layer0", "layer1"]`).
    """

    name: str
    path: Path
    manifest: dict[str, Any]

    @property
    def layers(self) -> list[str]:
        return self.manifest["layers"]

    @property
    def n_samples(self) -> int:
        return self.manifest["n_samples"]

    @property
    def fingerprint(self) -> str | None:
        """`fingerprint` of the samples; None for a run of the original, which names none."""
        return self.manifest["dataset"]["fingerprint"]

    def layer(self, number: int) -> str:
        """The layer folder of a number typed by a user: negative ones count from the last recorded layer."""
        name = self.layers[number] if -len(self.layers) <= number < 0 else f"layer{number}"
        if name not in self.layers:
            raise UserError(f"run {self.name!r} has no layer {number}; it has {', '.join(self.layers)}")
        return name

    def d_sae(self, layer: str) -> int:
        """The number of latents of a layer's SAE."""
        return next(self.blocks(layer)).shape[1]

    def blocks(self, layer: str, rows: slice = slice(None)) -> Iterator[Any]:
        """Yield the layer's features as scipy csr_array float32 blocks [rows, d_sae], in row order.

        Of `rows` only, if they are given: files that hold none of them are not read.
        """
        first, last, _ = rows.indices(self.n_samples)
        parts = _original_parts if self.manifest["format_version"] == 0 else _parts
        start = 0
        for count, read in parts(self.path, layer):
            inside = slice(max(first - start, 0), min(last - start, count))
            if inside.start < inside.stop:
                block = read() if inside == slice(0, count) else read()[inside]
                self._check_finite(layer, start + inside.start, block)
                yield block
            start += count
        if start != self.n_samples:
            raise UserError(
                f"run {self.name!r} is damaged: {layer} holds {start} rows and the manifest says "
                f"{self.n_samples}; record it again with --overwrite"
            )

    def _check_finite(self, layer: str, start: int, block: Any):
        """Refuse a block, from row `start` on, that holds NaN or infinity: no score could be told from it."""
        if not np.isfinite(block.data).all():
            entry = np.flatnonzero(~np.isfinite(block.data))[0]
            row = start + int(np.searchsorted(block.indptr, entry, side="right")) - 1
            raise UserError(
                f"run {self.name!r} holds {block.data[entry]} in {layer}, row {row}, feature "
                f"{block.indices[entry]}: leave the run out, or record it again with --overwrite"
            )

    def load(self, layer: str):
        """A layer's features, whole: scipy csr_array float32 [n_samples, d_sae]."""
        import scipy.sparse

        return scipy.sparse.vstack(list(self.blocks(layer)), format="csr")

    def samples(self) -> list[dict[str, str]]:
        """One dict a row with `id`, `image` and `caption`; empty for a run of the original."""
        return [] if self.manifest["format_version"] == 0 else _read_samples(self.path, self.n_samples)


def run_names() -> list[str]:
    """The names of all runs that are whole, sorted."""
    folders = ROOT.iterdir() if ROOT.is_dir() else ()
    return sorted(folder.name for folder in folders if (folder / MANIFEST).is_file() or _is_original(folder))


def open_run(name: str) -> Run:
    """Open a recorded run. Unknown, incomplete or foreign folders are refused with what to do instead."""
    path = run_path(name)
    if (path / MANIFEST).is_file():
        return Run(path.name, path, _read_manifest(path))
    if _is_original(path):
        return Run(path.name, path, _original_manifest(path))
    if path.is_dir():
        raise UserError(
            f"run {path.name!r} is incomplete ({path / MANIFEST} is missing): give its train command again to finish it"
        )
    known = ", ".join(run_names()) or "none yet: `uv run train_image.py` records one"
    raise UserError(f"no run named {path.name!r} in {ROOT}/; recorded runs: {known}")


def run_path(name: str) -> Path:
    """The folder of a run's name; its path, as a shell completes it (`./sae_features/NAME/`), is understood too."""
    path = Path(os.path.abspath(name))
    name = path.name if path.parent == ROOT.absolute() else name.rstrip("/")
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", name):
        raise UserError(f"{name!r} is no name for a run: use letters, digits, '.', '_', '+' and '-'")
    return ROOT / name


def fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """sha256 over the rows in order, a line each of id, tab, first caption: it tells which samples a run is of.

    Ids alone would not: in many data sets they are row numbers or file names, which unrelated ones share.
    """
    digest = hashlib.sha256()
    for name, caption in rows:
        digest.update(f"{name}\t{caption}\n".encode())
    return digest.hexdigest()


def check_aligned(runs: list[Run]):
    """Refuse runs whose rows are not the same samples in the same order, as far as runs name their samples."""
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
                f"runs {known[0].name!r} and {other.name!r} are not comparable: {_data_line(known[0])} against "
                f"{_data_line(other)}; record both on the same --dataset, --data_root and --limit"
            )


def _data_line(run: Run) -> str:
    dataset = run.manifest["dataset"]
    place = (dataset.get("source") or {}).get("data_root")
    rows = f"fingerprint {run.fingerprint[:12]}" if run.fingerprint else "samples unknown"
    return f"{dataset['name']}{f' at {place}' if place else ''} ({run.n_samples} samples, {rows})"


def _read_samples(path: Path, n_samples: int) -> list[dict[str, str]]:
    try:
        lines = (path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
        samples = [json.loads(line) for line in lines if line]
        texts = [sample[key] for sample in samples for key in ("id", "image", "caption")]
        whole = len(samples) == n_samples and all(isinstance(text, str) for text in texts)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(
            f"run {path.name!r} does not tell which {n_samples} samples it is of: {path}/samples.jsonl is missing "
            "or damaged; put the file back, or record the run again with --overwrite"
        )
    return samples


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path / MANIFEST} is damaged ({error}); record the run again with --overwrite"
        ) from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version in (SAMPLES_AS_IDS, FORMAT_VERSION):
        _check_manifest(path, manifest)
    if version == SAMPLES_AS_IDS:
        rows = [(row["id"], row["caption"]) for row in _read_samples(path, manifest["n_samples"])]
        return manifest | {"dataset": manifest["dataset"] | {"fingerprint": fingerprint(rows)}}
    if version != FORMAT_VERSION:
        raise UserError(
            f"run {path.name!r} has format version {version} and this toolkit reads {FORMAT_VERSION}; "
            "record it again with --overwrite"
        )
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]):
    """Refuse a manifest that lacks what every reader needs, or holds another type."""
    named = lambda entry, keys: isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in keys)  # noqa: E731
    layers, n_samples = manifest.get("layers"), manifest.get("n_samples")
    right = {
        "layers": isinstance(layers, list) and bool(layers) and all(isinstance(name, str) for name in layers),
        "n_samples": type(n_samples) is int and n_samples > 0,
        "dataset": named(manifest.get("dataset"), ("name", "fingerprint")),
        "encoder": named(manifest.get("encoder"), ("model", "checkpoint", "modality")),
    }
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise UserError(
            f"{path / MANIFEST} is damaged ({', '.join(wrong)}: missing, or not of its type); record the run again "
            "with --overwrite"
        )


def _parts(path: Path, layer: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    """The number of rows of each part file, and how to read it."""
    for part in sorted((path / layer).glob("features-*.npz")):
        yield _from_part(part, _n_rows), functools.partial(_from_part, part, _read_part)


def _n_rows(part: Path) -> int:
    with np.load(part) as arrays:
        return int(arrays["shape"][0])


def _read_part(part: Path) -> Any:
    import scipy.sparse

    return scipy.sparse.csr_array(scipy.sparse.load_npz(part))


def _from_part(part: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` finds in a part file; a damaged one is named."""
    import zipfile
    import zlib

    try:
        return read(part)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{part} is damaged ({error}); record the run again with --overwrite") from error


def _original_layers(path: Path) -> list[str]:
    """Its files `layer0.pt`, `layer1.pt`, … in depth order; `layer-1.pt` is the last layer."""
    numbers = [re.fullmatch(r"layer(-?\d+)\.pt", file.name) for file in path.glob("layer*.pt")]
    found = [int(match[1]) for match in numbers if match]
    return [f"layer{number}" for number in sorted(found, key=lambda number: (number < 0, number))]


def _is_original(path: Path) -> bool:
    return path.is_dir() and not (path / UNFINISHED).exists() and bool(_original_layers(path))


def _original_tensor(path: Path, layer: str):
    import pickle

    import torch

    file = path / f"{layer}.pt"
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read as a tensor: {str(error).splitlines()[0]}") from error
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
        raise UserError(f"{file} does not hold one tensor [n_samples, d_sae]")
    return tensor


def _original_manifest(path: Path) -> dict[str, Any]:
    layers = _original_layers(path)
    return {
        "format_version": 0,
        "layers": layers,
        "n_samples": _original_tensor(path, layers[0]).shape[0],
        "dataset": {"name": "data of the original code", "fingerprint": None},
    }


def _original_parts(path: Path, layer: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    """As `_parts`, of a tensor of the original, PART_ROWS at a time."""
    import scipy.sparse

    for block in _original_tensor(path, layer).split(PART_ROWS):
        yield len(block), lambda block=block: scipy.sparse.csr_array(block.float().numpy())


def check_place(path: Path):
    """Refuse what cannot be a run's folder: a file, a link to nothing, a place that cannot be written to."""
    for place in (ROOT, path):
        if os.path.lexists(place) and not place.is_dir():
            what = "a link to a folder that is not there" if place.is_symlink() else "a file"
            raise UserError(
                f"{place} is {what}, and a run needs a folder: move it away, or make what it names"
            )
    nearest = next(place for place in (path, ROOT, Path()) if place.is_dir())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{nearest.resolve()} cannot be written to: change its permissions, or work elsewhere"
        )


def check_free(path: Path):
    """Refuse the folder of a whole run, and one that holds something else than what a command left unfinished."""
    if is_whole(path):
        raise UserError(
            f"run {path.name!r} exists: choose another --runname, or add --overwrite to replace it"
        )
    if others := [] if (path / UNFINISHED).exists() else other_names(path):
        raise UserError(
            f"{path} holds no whole run and is not empty ({', '.join(others[:3])}): choose another --runname, "
            "move it away, or add --overwrite to remove what there is of a run"
        )


def other_names(path: Path) -> list[str]:
    """What a folder holds besides a command's mark, its lock and temporary files."""
    names = sorted(file.name for file in path.glob("*"))
    own = (UNFINISHED, LOCK, *TEMPORARY)
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in own)]


def is_whole(path: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (path / MANIFEST).exists() or _is_original(path)


def start_run(name: str, overwrite: bool = False) -> Path:
    """Make the folder of a new run and return it; a whole run of that name is refused unless `overwrite`."""
    path = run_path(name)
    check_place(path)
    if not overwrite:
        check_free(path)
    make_folder(path)
    withdraw(path)
    clear(path)
    return path


def withdraw(path: Path):
    """Make a run incomplete, before anything else of it goes, and drop what an unfinished one would resume from."""
    (path / MANIFEST).unlink(missing_ok=True)
    for state in path.glob("unfinished-*"):
        state.unlink(missing_ok=True)
    sync(path)


def clear(path: Path) -> list[str]:
    """Remove what a run consists of; returns the names of all else, which stays. Links are not followed."""
    for pattern, names in FOLDERS.items():
        for folder in path.glob(pattern):
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                remove(folder, names)
                if not any(folder.iterdir()):
                    folder.rmdir()
    remove(path, FILES)
    sync(path)
    return other_names(path)


def remove(folder: Path, patterns: tuple[str, ...]):
    """Remove a folder's files of these names."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_symlink() or file.is_file():
                file.unlink()


def write_samples(path: Path, samples: list[dict[str, str]]):
    """Write `samples.jsonl`, a line a row."""
    write_text(path / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))


def write_part(path: Path, layer: str, number: int, features):
    """Write part `number` of a layer's features: scipy CSR float32 [rows, d_sae]."""
    import scipy.sparse

    make_folder(path / layer)
    features.sort_indices()
    with replacing(path / layer / f"features-{number:05d}.npz") as temporary:
        scipy.sparse.save_npz(temporary, features.astype(np.float32), compressed=False)


def finish_run(path: Path, manifest: dict[str, Any]) -> Run:
    """Write the manifest, which makes the run whole, and open it."""
    write_text(path / MANIFEST, json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=2) + "\n")
    return open_run(path.name)
