"""The explorer's folder: the page, its data as scripts that open from disk, and the thumbnails that it shows."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import features
from comparing.reader import Reader
from comparing.sharedness import Sharedness, sharedness
from comparing.sides import DEFAULTS, Sides
from data import Pairs
from features import Run
from plumbing.progress import Progress
from showing import labels, names, objects
from showing.browsed import Beside, Browsed, beside
from showing.explored import Json, Told, records, table
from showing.explorer_meta import CAPTION_CHUNK, CHUNK, meta
from showing.labels import Label, Partner
from showing.lettering import id_beside
from showing.names import Named
from showing.page import write_page
from showing.places import Places, check, places
from showing.replaced import replacing_folder
from showing.thumbnails import thumbnails
from showing.words import vocabulary
from sources.opened import say

LETTERS = 300  # of a caption

ByBoth = dict[str, dict[str, Beside]]  # what a run finds in another, by their slugs


class Groups(NamedTuple):
    """The runs of `comp_sharedness.py`: what all of one group have, and none of the other."""

    min_group: list[Run]
    max_group: list[Run]


class Explorer(NamedTuple):
    """What to show: the first of `runs`, the others beside it, all of their layer `layer`, and how it was asked for."""

    runs: list[Run]
    layer: int
    groups: Groups | None
    pairs: Pairs
    folder: Path
    kept: Path  # where thumbnails are kept
    side: int  # pixels of a thumbnail
    command: list[str]
    where: bool = False  # in the pictures the first run's features fire


class Shown(NamedTuple):
    """What the data are written from: the layers, what they find in each other, and the first one's sharedness."""

    layers: list[Browsed]
    found: ByBoth
    shared: Sharedness | None


def write_explorer(explorer: Explorer) -> Path:
    """Write the folder, whole or not at all; returns its page. An explorer that stands there is replaced.

    Errors: runs of other samples; the folder holds something else; no feature is active.
    """
    features.check_aligned(explorer.runs)
    pairs, first = explorer.pairs, explorer.runs[0]
    if explorer.where:
        check(first, first.layer(explorer.layer))
    sides = Sides(explorer.runs, Reader(), DEFAULTS)
    with replacing_folder(explorer.folder) as temporary:
        layers = browsed(explorer, sides)
        shared = None
        if explorer.groups:
            shared = sharedness(first, *explorer.groups, layer=explorer.layer)
        shown = Shown(layers, find_all(layers, sides), shared)
        own = layers[0]
        spots = places(first, own.layer, own.columns, pairs) if explorer.where else None
        rows = write_data(explorer, shown, temporary / "data", spots)
        pictured = sorted(row for row in rows if pairs.samples[row].side == "image")
        without = sorted(rows - set(pictured))
        if pictured:
            made = thumbnails(pairs, explorer.kept, pictured, explorer.side)
            without = sorted({*without, *made.copy_to(temporary / "thumbs", pictured)})
        told = meta(explorer.command, layers, shown.found, sides, spots)
        told |= {"thumb": explorer.side, "thumbs": len(without) < len(rows)}
        told |= {"no_picture": without if told["thumbs"] else [], "groups": of_groups(explorer, shared)}
        put(temporary / "data" / "meta.js", "meta", told)
        write_page(temporary, f"Features of {first.name}")
    return explorer.folder / "index.html"


def browsed(explorer: Explorer, sides: Sides) -> list[Browsed]:
    """The layers that are shown, each with a slug of its own."""
    given = slugs([run.name for run in explorer.runs])
    return [
        Browsed.of(run, slug, run.layer(explorer.layer), sides)
        for run, slug in zip(explorer.runs, given, strict=True)
    ]


def slugs(given: Sequence[str]) -> list[str]:
    """A name for files of each run's name, in ASCII letters, digits, - and _, each once, in whichever case."""
    found: list[str] = []
    for name in given:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "run"
        numbered = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        taken = {slug.lower() for slug in found}
        found.append(next(slug for slug in numbered if slug.lower() not in taken))
    return found


def find_all(layers: list[Browsed], sides: Sides) -> ByBoth:
    """What each run's features find in each other run."""
    found: ByBoth = {one.slug: {} for one in layers}
    pairs = list(itertools.combinations(layers, 2))
    for one, other in Progress(pairs, desc="partners", leave=False, disable=len(pairs) < 2):
        found[one.slug][other.slug], found[other.slug][one.slug] = beside(one, other, sides)
    return {
        one.slug: {other.slug: found[one.slug][other.slug] for other in layers if other is not one}
        for one in layers
    }


def write_data(explorer: Explorer, shown: Shown, folder: Path, spots: Places | None) -> set[int]:
    """Write tables, features and captions; returns the rows that are shown."""
    things = objects.categories(explorer.pairs)
    named = name_all(shown.layers, explorer.pairs)
    labelled = label_all(shown, named)
    rows: set[int] = set()
    for one in shown.layers:
        is_first = one is shown.layers[0]
        own, place = shown.found[one.slug], f"{one.slug}-{one.layer}"
        columns = table(one, labelled[one.slug], own, shown.shared if is_first else None)
        put(folder / f"{place}.js", f"table/{one.slug}/{one.layer}", columns)
        grids, side = (spots.grids, spots.side) if spots and is_first else ({}, 0)
        marked = None if things is None else names.described(one.side.codes.matrix, things)
        told = Told(named[one.slug], marked, own, grids, side)
        for number, chunk in enumerate(chunks(records(one, told))):
            put(folder / place / f"f{number:03d}.js", f"features/{one.slug}/{one.layer}/{number}", chunk)
            rows.update(*map(rows_of, chunk))
    write_captions(explorer.pairs, folder / "captions")
    return rows


def name_all(layers: list[Browsed], pairs: Pairs) -> dict[str, list[Named]]:
    """What the words of its captions tell of each run's features; `pairs` has those of the first run."""
    first, held = layers[0].run.caption, {layers[0].run.caption: vocabulary(pairs.captions)}
    for one in layers:
        if one.run.caption not in held:
            held[one.run.caption] = vocabulary([[text] for text in one.run.samples().captions])
            say(f"samples are shown with caption {first}; {one.run.name} was given caption {one.run.caption}")
    return {
        one.slug: names.described(one.side.codes.matrix, held[one.run.caption])
        for one in Progress(layers, desc="names", leave=False)
    }


def label_all(shown: Shown, named: dict[str, list[Named]]) -> dict[str, dict[int, Label]]:
    """The names of each run's features; those of pictures that have no word are named after their text partners."""
    found: dict[str, dict[int, Label]] = {}
    for one in sorted(shown.layers, key=lambda one: not is_text(one.run)):
        partners = [] if is_text(one.run) else text_partners(one, shown, found)
        found[one.slug] = labels.labelled(one.run, one.layer, lambda one=one: named[one.slug], partners)
    return found


def text_partners(one: Browsed, shown: Shown, labelled: dict[str, dict[int, Label]]) -> list[Partner]:
    """What each text run tells of a layer's features; none where there are too few samples to hold half out."""
    partners = []
    for text in shown.layers:
        held_out = shown.found[one.slug][text.slug].held_out if is_text(text.run) else None
        if held_out is not None:
            best = shown.found[one.slug][text.slug].nearest.feature[:, 0]
            told = {number: label.name for number, label in labelled[text.slug].items() if label.name}
            partners.append(Partner(text.run.name, best, held_out, told))
    return partners


def is_text(run: Run) -> bool:
    return (run.manifest.get("encoder") or {}).get("modality") == "text"


def chunks(told: Iterator[Json]) -> Iterator[list[Json]]:
    """The records of each file."""
    while chunk := list(itertools.islice(told, CHUNK)):
        yield chunk


def rows_of(record: dict[str, Any]) -> set[int]:
    """The rows whose pictures a feature's page shows."""
    rows = {*record["rank"], *record["silent"], *(row for band in record["bands"] for row, _ in band)}
    for partners in record["partners"].values():
        rows.update(row for partner in partners for strip in partner[3:] for row in strip)
    return rows


def write_captions(pairs: Pairs, folder: Path):
    """The first caption of every row, cut where it is very long; [caption, id] where the id is another number."""
    for number, start in enumerate(range(0, len(pairs), CAPTION_CHUNK)):
        told: list[str | list[str]] = []
        for row, sample in enumerate(pairs.samples[start : start + CAPTION_CHUNK], start):
            text, name = sample.caption, id_beside(row, sample.id)
            text = text if len(text) <= LETTERS else f"{text[:LETTERS]}…"
            told.append([text, name] if name else text)
        put(folder / f"{number:03d}.js", f"captions/{number}", told)


def of_groups(explorer: Explorer, shared: Sharedness | None) -> Json | None:
    """What the page says of the groups."""
    if explorer.groups is None or shared is None:
        return None
    groups = {
        name: [run.name for run in runs] for name, runs in zip(Groups._fields, explorer.groups, strict=True)
    }
    return {"source": shared.source, **groups, "counts": shared.counts}


def put(file: Path, key: str, value: object):
    """Write a script that hands the page one value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    file.write_text(f"explorer.put({json.dumps(key)},{text});\n", encoding="ascii")
