"""A report of runs: one HTML file with its pictures inside it, to send to a colleague."""

import base64
import datetime
import hashlib
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from scipy.sparse import csr_array

import data
import features
from comparing.clusters import FEWEST
from comparing.comparison import with_references
from comparing.draws import Layer
from comparing.halves import tellable
from comparing.per_feature import Presence, presence
from comparing.reader import Reader
from comparing.results import Direction, number
from comparing.sharedness import ABSENT, ONE_SIDED_95
from comparing.sides import DEFAULTS, Sides
from features import Run
from plumbing import files
from plumbing.commandline import without_folders
from samples import Samples
from showing import labels, sheets, trusted
from showing.thumbnails import Thumbnails, thumbnails

ROOM = Path(__file__).parent
SHOWN, PICTURES = 8, 12  # features of a list, and samples of a feature
LETTERS = 300  # of a caption; the page shows two lines of it
VERSIONS = ("python", "torch", "transformers", "open_clip_torch")

Directions = dict[tuple[str, str], Direction]  # by source and target


class Shot(NamedTuple):
    """One sample: its picture as a data URI ("" where it cannot be read, None of a sound or a text), and its caption."""

    source: str | None
    caption: str


class Card(NamedTuple):
    """A feature: its number and name, how active and how shared it is, and its highest samples."""

    title: str
    facts: str
    shots: list[Shot]


class Cards(NamedTuple):
    """A list of features, and the rule that chose them."""

    title: str
    rule: str
    cards: list[Card]


class Cell(NamedTuple):
    """One score of the matrix, as it is printed; `shade` is 0 to 10."""

    value: str
    interval: str
    floor: str
    shade: int


class LayerMap(NamedTuple):
    """The wMPPC of every layer of one run with every layer of another: texts and shades, [row][column]."""

    source: str
    target: str
    rows: list[str]
    columns: list[str]
    cells: list[list[tuple[str, int]]]
    highest: str


class Pictures(NamedTuple):
    """Where a page's pictures come from: `data_root` if they have moved, and `kept`, the folder of thumbnails of
    `side` pixels."""

    data_root: str | None
    kept: Path
    side: int


def write_report(file: Path, runs: Sequence[Run], pictures: Pictures, at_least: int, command: Sequence[str]):
    """Write the page. Its features are of the first run's last layer, and active on `at_least` samples."""
    features.check_aligned(list(runs))
    sides = Sides(runs, Reader(), DEFAULTS)
    both = [with_references(*pair, ("wmppc",), sides) for pair in itertools.combinations(runs, 2)]
    found = {(one.source, one.target): one for pair in both for one in pair}
    text = rendered(
        title=titled([run.name for run in runs]),
        first=runs[0],
        dataset=without_folders(runs[0].manifest["dataset"]["name"]),
        made=datetime.date.today().isoformat(),
        command=shlex.join(map(without_folders, command)),
        versions=_versions(runs[0]),
        runs=[described(run) for run in runs],
        of_text=_of_text(runs[0]),
        matrix=matrix(runs, found) if found else [],
        held_out=any(one.wmppc["last_layer"].held_out is not None for one in found.values()),
        trust=trust(list(found.values())),
        maps=layer_maps(runs, found),
        lists=lists(runs, sides, pictures, at_least),
    )
    files.write_text(file, text)


def rendered(**values: object) -> str:
    """The page's text, everything in `values` escaped; its policy allows its own style, by hash, and its pictures."""
    style = (ROOM / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("report.html.j2")
    return template.render(style=Markup(style), style_hash=digest, **values)


def titled(names: list[str]) -> str:
    """The page's title."""
    if len(names) == 1:
        return f"What {names[0]} responds to"
    return f"What {names[0]} has in common with {_listed(names[1:])}"


def described(run: Run) -> dict[str, object]:
    """A run's row of the first table, and its layers' rows of the second."""
    manifest = run.manifest
    encoder, training = manifest.get("encoder") or {}, manifest.get("training") or {}
    return {
        "name": run.name,
        "model": encoder.get("model", "-"),
        "checkpoint": without_folders(str(encoder.get("checkpoint", "-"))),
        "random": encoder.get("random_weights") is not None,
        "modality": encoder.get("modality", "-"),
        "token": manifest.get("token", "-"),
        "activation": manifest.get("activation", "-"),
        "seed": training.get("seed", "-"),
        "layers": run.layers[0] if len(run.layers) == 1 else f"{run.layers[0]} to {run.layers[-1]}",
        "command": shlex.join(map(without_folders, manifest.get("command") or [])),
        "quality": [{"name": layer, "numbers": quality(run, layer)} for layer in run.layers],
    }


def quality(run: Run, layer: str) -> list[str]:
    """The numbers of a layer's SAE, as they are printed; a dash for what the run does not tell."""
    sae = (run.manifest.get("sae") or {}).get(layer) or {}
    l0 = run.score("l0", layer)
    fits = [run.score(name, layer) for name in ("fvu", "fvu_recorded")]
    shares = [run.score(name, layer) for name in ("dead_fraction", "dense_fraction")]
    return [
        *(str(sae.get(key, "-")) for key in ("d_sae", "k")),
        *map(number, fits),
        "-" if l0 is None else f"{l0:.1f}",
        *("-" if share is None else f"{share:.1%}" for share in shares),
    ]


def matrix(runs: Sequence[Run], found: Directions) -> list[list[Cell | None]]:
    """The scores of the last layers [source][target]; None for a run and itself."""

    def cell(direction: Direction | None) -> Cell | None:
        if direction is None:
            return None
        score = direction.wmppc["last_layer"]
        value = score.value if score.held_out is None else score.held_out
        low, high = score.interval or (None, None)
        interval = "" if low is None else f"{number(low)} to {number(high)}"
        return Cell(number(value), interval, number(score.floor), shade(value))

    return [[cell(found.get((row.name, column.name))) for column in runs] for row in runs]


def shade(value: float, highest: float = 1.0) -> int:
    """0 to 10, by the share of the highest value; 0 for what is no number."""
    return 0 if np.isnan(value) else int(np.clip(round(10 * value / highest), 0, 10))


def trust(directions: list[Direction]) -> dict[str, list]:
    """The table of all that is told of the last layers' scores, what its headings mean, and its notes."""
    headings = trusted.shown(tuple(directions)) if directions else []
    rows = []
    for one in directions:
        texts = dict(zip(trusted.COLUMNS, trusted.cells(one.wmppc["last_layer"]), strict=True))
        rows.append((f"{one.source} → {one.target}", [texts[heading] or "-" for heading in headings]))
    meanings = [(heading, trusted.MEANINGS[heading]) for heading in headings if heading in trusted.MEANINGS]
    notes = list(dict.fromkeys(line.strip() for line in trusted.references(tuple(directions))))
    return {"headings": headings, "rows": rows, "meanings": meanings, "notes": notes}


def layer_maps(runs: Sequence[Run], found: Directions) -> list[LayerMap]:
    """The maps between the first run and each other one, both ways, where there is more than one layer."""
    first = runs[0].name
    shown = [
        one
        for (source, target), one in found.items()
        if first in (source, target) and max(map(len, (one.source_layers, one.target_layers))) > 1
    ]
    scores = [score.value for one in shown for row in one.layers for score in row]
    highest = max([value for value in scores if not np.isnan(value)], default=1.0) or 1.0
    return [
        LayerMap(
            one.source,
            one.target,
            [layer.removeprefix("layer") for layer in one.source_layers],
            [layer.removeprefix("layer") for layer in one.target_layers],
            [[(number(score.value), shade(score.value, highest)) for score in row] for row in one.layers],
            number(max(score.value for row in one.layers for score in row)),
        )
        for one in shown
    ]


class Shown(NamedTuple):
    """What the cards of a layer's features are made from; `shared` is by the other runs' names."""

    run: Run
    codes: csr_array
    samples: Samples
    pairs: data.Pairs
    small: Thumbnails
    names: Mapping[int, str]
    shared: dict[str, Presence]

    def card(self, found: sheets.Highest) -> Card:
        share = found.count / self.run.n_samples
        facts = [f"active on {found.count:,} samples ({share:.1%})"]
        if self.shared:
            held = (f"{number(one.held_out[found.feature])} in {name}" for name, one in self.shared.items())
            facts.append(f"held-out correlation {', '.join(held)}")
        shots = [self.shot(row) for row in found.rows.tolist()]
        return Card(sheets.titled(found.feature, self.names), "; ".join(facts), shots)

    def shot(self, row: int) -> Shot:
        caption = " ".join(self.samples.captions[row].split())
        caption = caption if len(caption) <= LETTERS else f"{caption[:LETTERS]}…"
        if self.pairs.samples[row].side != "image":
            return Shot(None, caption)
        path = self.small.path(row)
        if row in self.small.missing or not path.is_file():
            return Shot("", caption)
        return Shot(f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}", caption)


def lists(runs: Sequence[Run], sides: Sides, pictures: Pictures, at_least: int) -> list[Cards]:
    """The features of the first run that all other runs have most, and those that none has; else the most active."""
    run, others = runs[0], runs[1:]
    own, codes, pairs = (
        Layer(run, run.layers[-1]),
        run.load(run.layers[-1]),
        data.reopen(run, pictures.data_root),
    )
    enough = sides.clusters(*runs).n >= FEWEST
    shared = {other.name: presence(own, Layer(other, other.layers[-1]), sides) for other in others if enough}
    tells = tellable(sides.moments(own), sides.options.min_active)
    chosen = choices(codes, shared, at_least, tells)
    wanted = sorted({feature for _, _, some in chosen for feature in some})
    found = {one.feature: one for one in sheets.highest(codes, wanted, PICTURES)}
    rows = {row for one in found.values() for row in one.rows.tolist()}
    small = thumbnails(pairs, pictures.kept, rows, pictures.side)
    names = labels.names_of(run, own.name, codes, pairs.captions)
    shown = Shown(run, codes, run.samples(), pairs, small, names, shared)
    return [Cards(title, rule, [shown.card(found[i]) for i in some]) for title, rule, some in chosen]


def choices(
    codes: csr_array, shared: dict[str, Presence], at_least: int, tells: Bool[np.ndarray, " feature"]
) -> list[tuple[str, str, list[int]]]:
    """The lists' titles, rules and features; `tells`: whose held-out correlation tells anything."""
    by_activation = sheets.chosen_features(codes, None, codes.shape[1], at_least)
    active = f"active on at least {at_least} samples"
    if not shared:
        rule = (
            f"Features {active}, by summed activation; those active on over a tenth of the samples come last."
        )
        return [("Most active features", rule, by_activation[:SHOWN])]
    lowest = np.min([one.held_out for one in shared.values()], axis=0)
    highest = np.max([one.held_out + ONE_SIDED_95 * one.error for one in shared.values()], axis=0)
    most = sheets.chosen_features(codes, None, SHOWN, at_least, lowest)
    least = [one for one in by_activation if tells[one] and highest[one] <= ABSENT][:SHOWN]
    runs = _listed(list(shared))
    return [
        (
            f"Most shared with {runs}",
            f"Features {active}, by their held-out correlation with their best partner"
            + (" in the run that has least of them." if len(shared) > 1 else "."),
            most,
        ),
        (
            f"Surely not in {runs}",
            f"Features {active} whose held-out correlation plus {ONE_SIDED_95} standard errors is at most {ABSENT}"
            + (" in each of these runs" if len(shared) > 1 else "")
            + "; the most active first, those active on over a tenth of the samples last.",
            least,
        ),
    ]


def _listed(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _of_text(run: Run) -> bool:
    return (run.manifest.get("encoder") or {}).get("modality") == "text"


def _versions(run: Run) -> str:
    versions = run.manifest.get("versions") or {}
    return ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)
