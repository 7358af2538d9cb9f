"""A synthetic explorer folder, in the form that the page reads, with answers that tests know."""

import base64
import functools
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from showing.page import write_page

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("disc", "square", "ring", "star", "cross", "triangle")
RUNS = ("clip", "vit", "bert")  # bert is of text
LAYER, CHUNK, CAPTIONS = "layer11", 64, 4096
STATUSES = ("present, absent", "in vit", "not in bert")


def write_folder(
    folder: Path,
    features: int = 200,
    samples: int = 600,
    pictures: int = 300,
    lost: Iterable[int] = (),
    spice: Callable[[str], str] = str,
) -> Path:
    """Write a whole explorer of three runs: `features` live ones each, `samples` rows, `pictures` of them with one.

    The files of the pictures of rows `lost` are not there.

    `spice` changes every text that comes from outside: names of runs and features, captions, labels, paths.
    The columns: feature numbers are 3 i + 1; the first two features are dense, the next one is rare; every tenth
    has no word; held-out r falls with i, and is not told for the rare one. Returns the folder's page.
    """
    write_page(folder, spice("Feature explorer"))
    put(folder / "data" / "meta.js", "meta", meta(features, samples, pictures, spice))
    for slug in RUNS:
        put(
            folder / "data" / f"{slug}-{LAYER}.js",
            f"table/{slug}/{LAYER}",
            table(slug, features, samples, spice),
        )
        for start in range(0, features, CHUNK):
            places = range(start, min(start + CHUNK, features))
            found = [feature(slug, place, features, samples, pictures, spice) for place in places]
            file = folder / "data" / f"{slug}-{LAYER}" / f"f{start // CHUNK:03d}.js"
            put(file, f"features/{slug}/{LAYER}/{start // CHUNK}", found)
    for start in range(0, samples, CAPTIONS):
        rows = range(start, min(start + CAPTIONS, samples))
        texts = [[spice(caption(row)), str(row + 1)] if row % 2 == 0 else spice(caption(row)) for row in rows]
        put(
            folder / "data" / "captions" / f"{start // CAPTIONS:03d}.js",
            f"captions/{start // CAPTIONS}",
            texts,
        )
    for row in set(range(pictures)) - set(lost):
        file = folder / "thumbs" / f"{row // 1000:03d}" / f"{row:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(row % 48))
    return folder / "index.html"


def put(file: Path, key: str, value: Any):
    """A data file: one call of `explorer.put`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    file.write_text(f"explorer.put({json.dumps(key)}, {text});\n")


def number(place: int) -> int:
    """The number of the feature at a place of the tables."""
    return 3 * place + 1


def name(place: int) -> str:
    """Its name: "red disc", "green disc" …; "" is no word."""
    cycle = place // 48 + 1
    words = f"{COLOURS[place % 8]} {SHAPES[place // 8 % 6]}" + (f" {cycle}" if cycle > 1 else "")
    return "" if place % 10 == 9 else words


def caption(row: int) -> str:
    """A sentence on the row's picture."""
    return f"a {COLOURS[row % 8]} {SHAPES[row // 8 % 6]} on a grey ground, number {row}"


@functools.cache
def picture(kind: int) -> bytes:
    """A small JPEG of a colour, wider than high."""
    red, green, blue = np.random.default_rng(kind).integers(40, 230, 3).tolist()
    pixels = np.full((72, 96, 3), (200, 200, 200), np.uint8)
    pixels[16:56, 28:68] = red, green, blue
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=75)
    return written.getvalue()


def meta(features: int, samples: int, pictures: int, spice: Callable[[str], str]) -> dict[str, Any]:
    """META."""
    layer = {
        "name": LAYER,
        "d_sae": 4 * features,
        "live": features,
        "fvu": 0.183,
        "fvu_recorded": 0.221,
        "l0": 16.0,
        "dead_fraction": 0.021,
        "dense_fraction": 0.004,
    }
    runs = [
        {
            "name": spice(slug),
            "slug": slug,
            "modality": "text" if slug == "bert" else "image",
            "encoder": {"model": spice(slug.title()), "checkpoint": spice(f"{slug}/base-patch16")},
            "token": spice("cls"),
            "activation": "topk",
            "command": [spice("train.py")],
            "layers": [layer],
            "k": 16,
            "crop": 1.0,
        }
        for slug in RUNS
    ]
    scores = {
        key: [[value if at != to else 1 for to in range(3)] for at in range(3)]
        for key, value in {"value": 0.52, "floor": 0.04, "held_out": 0.43, "low": 0.41, "high": 0.45}.items()
    }
    return {
        "fingerprint": "0f" * 32,
        "n_samples": samples,
        "command": [spice("show.py"), "--html"],
        "made": "2026-11-25T12:00:00",
        "versions": {spice("numpy"): spice("2.4")},
        "dataset": spice("scenes"),
        "thumb": 128,
        "thumbs": True,
        "no_picture": list(range(pictures, samples)),
        "chunk": CHUNK,
        "caption_chunk": CAPTIONS,
        "min_active": 10,
        "dense": 0.1,
        "rare": 16,
        "seed": 0,
        "where": {"words": spice("the same SAE, applied to patch tokens")},
        "runs": runs,
        "matrix": scores,
        "groups": {
            "source": spice("clip"),
            "min_group": [spice("bert")],
            "max_group": [spice("vit")],
            "counts": {spice("both"): 3},
        },
    }


def counts(features: int, samples: int) -> list[int]:
    """On how many rows each feature is active: two dense ones, a rare one, then fewer and fewer."""
    return [
        samples // 2,
        samples // 3,
        5,
        *(max(16, samples // 12 - place % 37) for place in range(3, features)),
    ]


def table(slug: str, features: int, samples: int, spice: Callable[[str], str]) -> dict[str, Any]:
    """TABLE: a partner is the feature one place further; the one at place 2 is too rare for one."""
    others, places = [other for other in RUNS if other != slug], range(features)
    partners = [number((place + 1) % features) if place != 2 else -1 for place in places]
    held = [round(0.9 * (1 - place / features), 4) if place != 2 else None for place in places]
    groups = slug == "clip"
    return {
        "feature": [number(place) for place in places],
        "name": [spice(name(place)) if name(place) else "" for place in places],
        "by": ["captions" if place % 4 else "partner" for place in places],
        "score": [round(0.3 + 0.6 * (place % 13) / 13, 3) if name(place) else None for place in places],
        "count": counts(features, samples),
        "mean": [round(0.5 + place * 7 % 11, 3) for place in places],
        "max": [round(3 + place * 7 % 11, 3) for place in places],
        "partner": dict.fromkeys(others, partners),
        "partner_layer": dict.fromkeys(others, LAYER),
        "held_out": {
            other: [value and round(value / (1 + at), 4) for value in held] for at, other in enumerate(others)
        },
        "floor": dict.fromkeys(others, [0.05] * features),
        "delta": [round((place % 17 - 8) * 1.7, 3) for place in places] if groups else None,
        "status": [spice(STATUSES[place % 3]) for place in places] if groups else None,
    }


def feature(
    slug: str, place: int, features: int, samples: int, pictures: int, spice: Callable[[str], str]
) -> dict[str, Any]:
    """FEATURE: its highest rows begin at five times its place, others are strewn; the one at place 2 has no bands."""
    rows = [(place * 5 + at) % pictures for at in range(24)]
    strewn = [(place * 7919 + at * 104729) % samples for at in range(42)]
    strips = [strewn[at : at + 6] for at in (24, 30, 36)]
    near = [number((place + at) % features) for at in range(1, 9)]
    glow = np.outer(*[np.hanning(14)] * 2) * 255
    partners = [
        [feature, round(0.8 - 0.1 * at, 3), round(0.82 - 0.1 * at, 3), *strips]
        for at, feature in enumerate(near[:5])
    ]
    return {
        "feature": number(place),
        "rank": rows,
        "act": [round(9 - 0.2 * at, 3) for at in range(24)],
        "bands": []
        if place == 2
        else [[[row, band + 0.5] for row in strewn[4 * band : 4 * band + 4]] for band in range(5)],
        "silent": strewn[20:24],
        "hist": {"edges": [0.1, 9.0], "counts": [max(1, 40 - 2 * at) for at in range(20)]},
        "words": [[spice(name(place)), 0.71, 14, 0.031], [spice("ground"), 0.12, 16, 0.9]]
        if name(place)
        else [],
        "floor": 0.05,
        "objects": [[spice("ball"), 0.4]],
        "related": [[other, round(0.5 - 0.05 * at, 3)] for at, other in enumerate(near)],
        "alike": [[other, round(0.4 - 0.05 * at, 3)] for at, other in enumerate(near)],
        "partners": {other: partners for other in RUNS if other != slug},
        "where": {str(row): base64.b64encode(glow.astype(np.uint8).tobytes()).decode() for row in rows[:9]},
        "side": 14,
    }
