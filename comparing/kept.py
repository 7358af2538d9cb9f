"""Scores of finished pairs, kept in a run's folder and used again while both runs are unchanged."""

import hashlib
import json
import sys
from pathlib import Path

import features
import samples
from comparing.results import Comparison, Direction, Drivers, Nuisance, Score, plain
from plumbing import files

KEPT_VERSION = 6  # of the kept scores: raise it where a definition changes


def identity(run: features.Run) -> str:
    """What changes when any of a run's recorded features or samples do: sha256 over its manifest and its files'
    names, sizes and times. The samples' pictures and captions are their clusters, a user's column the strata."""
    digest = hashlib.sha256()
    patterns = "*/features-*.npz", "layer*.pt", "run.json", samples.NAME
    for file in sorted(file for pattern in patterns for file in run.path.glob(pattern)):
        state = file.stat()
        digest.update(f"{file.relative_to(run.path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    digest.update(json.dumps(run.manifest, sort_keys=True).encode())
    return digest.hexdigest()


def _kept_file(source: features.Run, target: features.Run, key: str) -> Path:
    return source.path / "pairs" / f"{target.name}{key and '.' + key}.json"


def read_kept(source: features.Run, target: features.Run, key: str = "") -> Comparison | None:
    """The scores kept of a pair; None where there are none, or of runs that have changed since.

    `key` tells apart what was asked for (`Options.key`).
    """
    try:
        kept = json.loads(_kept_file(source, target, key).read_text(encoding="utf-8"))
        found = [KEPT_VERSION, key, identity(source), identity(target)]
        return Comparison(*map(_as_direction, kept["directions"])) if kept["key"] == found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_kept(source: features.Run, target: features.Run, found: Comparison, key: str = ""):
    """Keep a pair's scores; a run's folder that cannot be written into keeps none, which is said."""
    file = _kept_file(source, target, key)
    words = [KEPT_VERSION, key, identity(source), identity(target)]
    try:
        files.make_folder(file.parent)
        files.write_text(file, json.dumps({"key": words, "directions": plain(list(found))}) + "\n")
    except OSError as error:
        print(f"the scores of this pair are not kept for the next time: {error}", file=sys.stderr)


def _as_direction(found: dict) -> Direction:
    table = {
        name: {scope: _as_score(score) for scope, score in by.items()} for name, by in found["scores"].items()
    }
    layers = [[_as_score(score) for score in row] for row in found["layers"]]
    drivers = found["drivers"] and Drivers(
        **found["drivers"]
        | {"dense": {at: tuple(map(_or_nan, both)) for at, both in found["drivers"]["dense"].items()}}
    )
    nuisance = found["nuisance"] and Nuisance(**found["nuisance"])
    return Direction(**found | {"scores": table, "layers": layers, "drivers": drivers, "nuisance": nuisance})


def _as_score(found: dict) -> Score:
    interval = found["interval"] and tuple(found["interval"])
    return Score(**found | {"value": _or_nan(found["value"]), "interval": interval})


def _or_nan(value: float | None) -> float:
    """JSON has no NaN: a score of a layer without live features is null there."""
    return float("nan") if value is None else value
