"""A pair's scores with what tells how far to trust them: the table, the lines below it, and what each means."""

import itertools
from collections.abc import Iterator

import numpy as np

from comparing.results import METRICS, Difference, Direction, Folds, Score, harmonic_mean, number, plain
from features import Run
from showing.tables import LABELS, as_csv, as_json, print_table

MEAN = "both (harmonic mean)"
SCOPES = {"last_layer": "last layer", "all_layers": "all layers"}
COLUMNS = {
    "score": 8,
    "floor": 8,
    "held out": 10,
    "95 %": 18,
    "C(.3)": 8,
    "C(.5)": 8,
    "of seeds": 10,
    "control": 15,
}  # headings and widths
MEANINGS = {
    "score": "wMPPC: each feature's highest correlation with a feature of the other run, weighted by its activation",
    "floor": "the score with the rows of one side permuted: what chance alone reaches",
    "held out": "partners chosen on one half of the samples and scored on the other: 0 where nothing is shared; quote this",
    "95 %": "the interval of held out, over samples; not over seeds of the SAEs",
    "C(.3)": "share of the activation in features with a held-out correlation of at least .3; C(.5): of at least .5",
    "of seeds": "C(.3) over that of the target's own SAE from another seed: a reference, which can be passed, no upper bound",
    "control": "held out / C(.3) with a random encoder, or a random SAE, in place of one that is trained",
}

CONTROLS = {  # what a control still has, by what of it is random
    "encoder": "random weights still tell pictures apart by colour, and captions by their words",
    "sae": "a dictionary that was drawn at random and never trained, on the trained encoder's activations",
}

STRATA = {  # what a stratum's samples have in common, and the samples, where --strata names no column
    "caption_words": ("caption length", "whose captions have equally many words"),
}


def print_pair(directions: tuple[Direction, ...], metrics: list[str]):
    """The table of a pair, what it says in words, and the layer-by-layer tables where there are several layers."""
    print(f"{clusters(directions[0])}{counted(directions)}")
    one_layer = all(len(d.source_layers) == len(d.target_layers) == 1 for d in directions)
    for scope, words in SCOPES.items():
        if scope == "last_layer" or not one_layer:
            print_scope(directions, scope, words)
    print()
    lines = reads(directions), drives(directions), nuisance(directions), references(directions)
    for line in (*itertools.chain(*lines), *older(directions, metrics)):
        print(line)
    print()
    for heading in shown(directions):
        if heading in MEANINGS:
            print(f"{heading:9} {MEANINGS[heading]}")
    for d in directions if not one_layer else ():
        print(f"\nwMPPC layer by layer, {d.source} -> {d.target} (rows -> columns)")
        print_table(
            d.source_layers, d.target_layers, np.array([[cell.value for cell in row] for row in d.layers])
        )


def clusters(direction: Direction) -> str:
    drivers = direction.drivers
    return f"{drivers.clusters} clusters of samples (largest {drivers.largest}); " if drivers else ""


def counted(directions: tuple[Direction, ...]) -> str:
    """How many features of the last layers count."""
    parts = [f"{d.counted[-1]} of {d.features[-1]} of {d.source}" for d in directions if d.counted]
    least = directions[0].min_active
    return f"features active on at least {least} samples: {', '.join(parts)}" if parts else ""


def print_scope(directions: tuple[Direction, ...], scope: str, words: str):
    """A line a direction, and the mean of both."""
    names = [f"{d.source} -> {d.target}" for d in directions]
    margin = max(len(name) for name in (*names, words, MEAN))
    headings = shown(directions)
    print(f"\n{words:{margin}}" + "".join(f"{heading:>{COLUMNS[heading]}}" for heading in headings))
    for name, d in zip(names, directions, strict=True):
        texts = dict(zip(COLUMNS, cells(d.wmppc[scope]), strict=True))
        print((f"{name:{margin}}" + "".join(f"{texts[at]:>{COLUMNS[at]}}" for at in headings)).rstrip())
    if len(directions) == 2:
        mean = harmonic_mean(*(d.wmppc[scope].held_out for d in directions))
        print(f"{MEAN:{margin}}{number(mean):>{sum(COLUMNS[at] for at in headings[:3])}}")


def cells(score: Score) -> Iterator[str]:
    """A score's texts, a column each."""
    yield from (number(score.value), number(score.floor), number(score.held_out))
    yield "-" if score.interval is None else f"{score.interval[0]:.3f} to {score.interval[1]:.3f}"
    yield from (number((score.coverage or {}).get(at)) for at in ("0.3", "0.5"))
    yield "" if score.seed_reference is None else number(score.seed_reference)
    control = score.control
    yield "" if control is None else f"{number(control.held_out)} / {number(control.coverage)}"


def shown(directions: tuple[Direction, ...]) -> list[str]:
    """The columns; those that need other runs only where there are such."""
    scores = [score for d in directions for score in d.wmppc.values()]
    missing = {
        "of seeds": all(score.seed_reference is None for score in scores),
        "control": all(score.control is None for score in scores),
    }
    return [heading for heading in COLUMNS if not missing.get(heading, False)]


def references(directions: tuple[Direction, ...]) -> Iterator[str]:
    """Which runs the references are, and what flatters or weakens them."""
    for d in directions:
        if d.reference is not None:
            yield f"seeds: the other seed of {d.target} is {d.reference.run}"
            if d.reference.same_order:
                yield "  both saw the data in one order (data_seed): such SAEs are more alike than independent ones"
            if (of_both := d.reference.attenuation.get("last_layer")) is not None:
                words = "held out over the square root of both sides' own seeds"
                yield f"  {words}, {d.source} -> {d.target}: {number(of_both)}"
    controls = [score.control for d in directions for score in d.wmppc.values() if score.control is not None]
    for run, random in dict.fromkeys((control.run, control.random) for control in controls):
        yield f"control: {run}; {CONTROLS[random or 'encoder']}"


def reads(directions: tuple[Direction, ...]) -> Iterator[str]:
    """The scores in words."""
    for d in directions:
        score = d.wmppc["last_layer"]
        if score.coverage is None:
            continue
        share = percent(score.coverage["0.3"])
        yield f"reads:    {share} of {d.source}'s activation has a partner with r >= .3 in {d.target};"
        if score.discovered is not None:
            control = None if score.control is None else score.control.discovered
            beside = "" if control is None else f" ({percent(control)} with the control)"
            yield f"          {percent(score.discovered)} of its features have one beyond chance at FDR 5 %{beside}: significant, not yet shared"


def drives(directions: tuple[Direction, ...]) -> Iterator[str]:
    """What the scores hang on."""
    for d in directions:
        if d.drivers is None or d.wmppc["last_layer"].held_out is None:
            continue
        shares = [
            f"{percent(share)} of the activation in features on > {percent(float(above))} of samples (score without: {number(without)})"
            for above, (share, without) in d.drivers.dense.items()
        ]
        yield f"drives:   {d.source}: {', '.join(shares)};"
        hubs, mutual = percent(d.drivers.hubs), percent(d.drivers.mutual)
        yield f"          {hubs} of its features have a partner among the 1 % most chosen; {mutual} are their partner's partner"


def nuisance(directions: tuple[Direction, ...]) -> Iterator[str]:
    """Other explanations of a score, on a sample of the features."""
    for d in directions:
        found = d.nuisance
        if found is None or d.wmppc["last_layer"].held_out is None:
            continue
        yield f"nuisance: what may explain the score of {d.source} besides shared concepts, by {found.features} of its features:"
        if found.strata is not None and found.strata_floor is not None:
            what, equal = STRATA.get(found.strata, (f"equal {found.strata}", f"of equal {found.strata}"))
            floors = number(found.strata_floor), number(found.floor)
            yield f"          {what} alone scores {floors[0]} (samples swapped among those {equal}; among all: {floors[1]})"
        if found.held_out_sqrt is None:
            yield f"          high activations weigh less in all scores here, of square roots: held out {number(found.held_out)}"
        else:
            scores = number(found.held_out_sqrt), number(found.held_out)
            yield f"          if high activations weigh less (square roots), held out is {scores[0]} instead of {scores[1]}"


def older(directions: tuple[Direction, ...], metrics: list[str]) -> Iterator[str]:
    """The older scores that were asked for, each beside what chance gives."""
    lines = []
    for metric in METRICS:
        if metric in metrics and metric != "wmppc" and metric in directions[0].scores:
            per_direction = directions if "all_layers" in directions[0].scores[metric] else directions[:1]
            values = [d.scores[metric]["last_layer"] for d in per_direction]
            texts = [f"{number(s.value)} (chance {number(s.floor)})" for s in values]
            if metric == "pw_mcc" and np.isnan(values[0].value):
                texts = ["has no value here: it is of two SAEs of one encoder's layer"]
            lines.append(f"{LABELS[metric]} {', back '.join(texts)}")
    if lines:
        yield "older:    scores by other formulas, of the last layers:"
        yield from (f"          {line}" for line in lines)


def print_extra(found: Difference | Folds):
    """A difference of two scores, or a score's folds."""
    if isinstance(found, Difference):
        low, high = found.interval
        words = f"{found.source} -> {found.first} minus {found.source} -> {found.second}"
        print(
            f"{words}   {found.value:+.3f}   95 % {low:+.3f} to {high:+.3f} (held out, paired over samples)"
        )
        return
    for words, scores in (
        (f"{found.source} -> {found.target}", found.forward),
        (f"{found.target} -> {found.source}", found.backward),
    ):
        spread = f"mean {number(float(np.mean(scores)))}, standard deviation {number(float(np.std(scores, ddof=1)))}"
        print(f"held out on {len(scores)} folds, {words}: {', '.join(map(number, scores))}; {spread}")


def trusted_json(run: Run, directions: tuple[Direction, ...], extra: Difference | Folds | None) -> str:
    """Everything that a comparison returns, and both directions' harmonic means."""
    by_pair = {(d.source, d.target): d for d in directions}
    means = [
        {"source": a, "target": b}
        | {
            scope: harmonic_mean(d.wmppc[scope].held_out, by_pair[b, a].wmppc[scope].held_out)
            for scope in SCOPES
        }
        for (a, b), d in by_pair.items()
        if (b, a) in by_pair and a <= b
    ]
    document: dict[str, object] = {"directions": plain(directions), "harmonic_mean": means}
    if extra is not None:
        document[type(extra).__name__.lower()] = plain(extra)
    return as_json(run, document, indent=2)


def percent(share: float | None) -> str:
    """A share in per cent, without decimals; a dash where there is none."""
    return "-" if share is None or share != share else f"{100 * share:.0f} %"


def trusted_csv(directions: tuple[Direction, ...], metrics: list[str]) -> str:
    """A line a score of all or the last layers, and of each layer with each layer, with all that tells of its trust."""
    thresholds = next(
        (list(s.coverage) for d in directions for s in d.wmppc.values() if s.coverage is not None), []
    )
    heads = [
        "source",
        "target",
        "metric",
        "source_layer",
        "target_layer",
        "score",
        "floor",
        "adjusted",
        "held_out",
    ]
    heads += ["low", "high", *(f"coverage_{at}" for at in thresholds), "discovered", "seed_reference"]
    lines: list[list] = [[*heads, "control", "control_held_out", "control_coverage_0.3"]]
    for d in directions:
        for metric in metrics:
            for scope, score in d.scores[metric].items():
                last = d.source_layers[-1], d.target_layers[-1]
                layers = ("all", "all") if scope == "all_layers" else last
                lines.append([d.source, d.target, metric, *layers, *csv_cells(score, thresholds)])
        for layer, row in zip(d.source_layers, d.layers, strict=True):
            for other, score in zip(d.target_layers, row, strict=True):
                if (layer, other) != (d.source_layers[-1], d.target_layers[-1]):
                    lines.append([d.source, d.target, "wmppc", layer, other, *csv_cells(score, thresholds)])
    return as_csv(lines)


def csv_cells(score: Score, thresholds: list[str]) -> list:
    coverage = score.coverage or {}
    low, high = score.interval or (None, None)
    control = score.control or (None, None, None)
    found = [score.value, score.floor, score.adjusted, score.held_out, low, high]
    return [
        *found,
        *(coverage.get(at) for at in thresholds),
        score.discovered,
        score.seed_reference,
        *control[:3],
    ]
