"""Scores of finished pairs, kept in a run's folder and used again while both runs are unchanged."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import features
from comparing.results import Comparison, Direction, Score, plain
from plumbing import files

KEPT_VERSION = 2  # of the kept scores: raise it where a definition changes


def identity(run: features.Run) -> str:
    """What changes when any of a run's recorded features do: sha256 over its manifest and its files' names,
    sizes and times."""
    digest = hashlib.sha256()
    for file in sorted(
        [*run.path.glob("*/features-*.npz"), *run.path.glob("layer*.pt"), *run.path.glob("run.json")]
    ):
        state = file.stat()
        digest.update(f"{file.relative_to(run.path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    digest.update(json.dumps(run.manifest, sort_keys=True).encode())
    return digest.hexdigest()


def _kept_file(source: features.Run, target: features.Run) -> Path:
    return source.path / "pairs" / f"{target.name}.json"


def read_kept(source: features.Run, target: features.Run) -> Comparison | None:
    """The scores kept of a pair; None where there are none, or of runs that have changed since."""
    try:
        kept = json.loads(_kept_file(source, target).read_text(encoding="utf-8"))
        key = [KEPT_VERSION, identity(source), identity(target)]
        return Comparison(*map(_as_direction, kept["directions"])) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_kept(source: features.Run, target: features.Run, found: Comparison):
    """Keep a pair's scores; a run's folder that cannot be written into keeps none, which is said."""
    file = _kept_file(source, target)
    key = [KEPT_VERSION, identity(source), identity(target)]
    try:
        files.make_folder(file.parent)
        files.write_text(file, json.dumps({"key": key, "directions": plain(list(found))}) + "\n")
    except OSError as error:
        print(f"the scores of this pair are not kept for the next time: {error}", file=sys.stderr)


def _as_direction(found: dict[str, Any]) -> Direction:
    table = {
        name: {scope: _score(pair) for scope, pair in by.items()} for name, by in found["scores"].items()
    }
    found |= {"scores": table, "layers": [[_score(pair) for pair in row] for row in found["layers"]]}
    return Direction(**found)


def _score(pair: dict[str, float | None]) -> Score:
    value, floor = (float("nan") if (number := pair[field]) is None else number for field in Score._fields)
    return Score(value, floor)
