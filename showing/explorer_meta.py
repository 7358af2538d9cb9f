"""What the explorer's page has to know before anything else: the runs, how good their SAEs are, what they share."""

import math
from collections.abc import Mapping, Sequence
from datetime import date

from comparing.sides import Sides
from plumbing.commandline import without_folders
from showing.browsed import Beside, Browsed
from showing.explored import Json, short
from showing.places import Places
from showing.samples import FEWEST, SEED

CHUNK = 64  # features a file
CAPTION_CHUNK = 4096  # captions a file
DENSE = 0.1  # share of the rows, above which a feature that is active there is called dense
QUALITY = ("fvu", "fvu_recorded", "l0", "dead_fraction", "dense_fraction")


def meta(
    command: Sequence[str],
    layers: Sequence[Browsed],
    found: Mapping[str, Mapping[str, Beside]],
    sides: Sides,
    spots: Places | None,
) -> Json:
    """META, but for what hangs on pictures and groups."""
    first = layers[0].run
    return {
        "fingerprint": first.fingerprint,
        "n_samples": first.n_samples,
        "dataset": without_folders(first.manifest["dataset"]["name"]),
        "command": [without_folders(word) for word in command],
        "made": date.today().isoformat(),
        "versions": first.manifest.get("versions") or {},
        "chunk": CHUNK,
        "caption_chunk": CAPTION_CHUNK,
        "min_active": sides.options.min_active,
        "dense": DENSE,
        "rare": FEWEST,
        "seed": SEED,
        "where": None if spots is None else {"words": spots.words},
        "runs": [run_of(one, spots) for one in layers],
        "matrix": matrix([one.slug for one in layers], found),
    }


def run_of(one: Browsed, spots: Places | None) -> Json:
    """A run's encoder and how good its SAE is; only the first run's page draws places."""
    manifest = one.run.manifest
    encoder, sae = manifest.get("encoder") or {}, (manifest.get("sae") or {}).get(one.layer) or {}
    told = {name: short(one.run.score(name, one.layer)) for name in QUALITY}
    return {
        "name": one.run.name,
        "slug": one.slug,
        "modality": encoder.get("modality", "-"),
        "encoder": {
            "model": encoder.get("model", "-"),
            "checkpoint": without_folders(str(encoder.get("checkpoint", "-"))),
        },
        "token": manifest.get("token", "-"),
        "activation": manifest.get("activation", "-"),
        "command": [without_folders(word) for word in manifest.get("command") or []],
        "k": sae.get("k"),
        "crop": None if spots is None else spots.crop,
        "layers": [{"name": one.layer, "d_sae": one.side.n_features, "live": len(one.live), **told}],
    }


def matrix(
    slugs: Sequence[str], found: Mapping[str, Mapping[str, Beside]]
) -> dict[str, list[list[float | None]]]:
    """The wMPPC of the layers that are shown, rows are sources: a run in itself is 1."""

    def cell(kind: str, row: str, column: str) -> float | None:
        if row == column:
            return None if kind == "floor" else 1.0
        score = found[row][column].score
        ends = dict(zip(("low", "high"), score.interval or (None, None), strict=True))
        value = ends[kind] if kind in ends else getattr(score, kind)
        return None if value is None or not math.isfinite(value) else round(float(value), 4)

    kinds = ("value", "floor", "held_out", "low", "high")
    return {kind: [[cell(kind, row, column) for column in slugs] for row in slugs] for kind in kinds}
