"""`labels.csv` in a run's folder: what each feature is called, by the machine or by a person who edited the file.

A line a feature of a layer: layer, feature, name, by, r, floor, words, stamp, and any column that a person adds. `by`
is "captions" or "partner" where the machine chose the name. A line with another `by`, or with a name that the machine
did not write, is a person's: it is kept and wins. `stamp` tells which features and which name a line was written
for, so that no label is shown for the features of another training.
"""

import csv
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from comparing.sharedness import PRESENT
from features import Run
from parts import Csr
from plumbing import files
from plumbing.errors import UserError

if TYPE_CHECKING:
    from showing.names import Named

FILE, OLD = "labels.csv", "labels-OLD"
METHOD = 1  # of naming: raise it where other names come out
CAPTIONS, PARTNER = "captions", "partner"  # who names for the machine
EDITED = "edited"  # who named where a person changed the name and not `by`
NEEDED = ("layer", "feature", "name", "by")
COLUMNS = (*NEEDED, "r", "floor", "words", "stamp")
DECIMALS = 4  # of r and floor


class Label(NamedTuple):
    """A feature's name ("": none found), who gave it, its correlation, and the r that shuffled captions reach.

    `words`: all its words with their r; `stamp`: what the line was written for; `extra`: a person's own columns.
    """

    layer: str
    feature: int
    name: str
    by: str
    r: float | None = None
    floor: float | None = None
    words: str = ""
    stamp: str = ""
    extra: Mapping[str, str] = {}

    @property
    def text(self) -> str:
        """The name, with its r where the machine chose it: a name that beats chance may still tell little."""
        return (
            f"{self.name} ({_short(self.r)})" if self.name and self.by == CAPTIONS and self.r else self.name
        )

    @property
    def is_machines(self) -> bool:
        """Whether the line stands as the machine wrote it."""
        return self.by in (CAPTIONS, PARTNER) and self.stamp == _stamp(self, self.method, self.key)

    @property
    def method(self) -> str:
        """The METHOD that the line was written by."""
        return self.stamp.partition("-")[0]

    @property
    def key(self) -> str:
        """The `_key` of the features that the line was written for."""
        return self.stamp.partition("-")[2].partition("-")[0]

    @property
    def is_persons(self) -> bool:
        """Whether a person wrote any of it."""
        return not self.is_machines or any(self.extra.values())


class Partner(NamedTuple):
    """What a text run tells of each feature: its best partner there (-1: none), their held-out r, and the partners'
    names by number."""

    run: str
    feature: Int[np.ndarray, " feature"]
    held_out: Float[np.ndarray, " feature"]
    names: Mapping[int, str]


def read(run: Run, layer: str) -> dict[int, Label]:
    """The labels of a layer's features as they are now; empty where there are none.

    Error: a file that cannot be understood.
    """
    own = _of_features(run, layer, _read(run.path / FILE)).values()
    return {label.feature: label for label in own if not label.is_machines or label.method == str(METHOD)}


def write(run: Run, layer: str, made: Iterable[Label]) -> dict[int, Label]:
    """Put the machine's labels of a layer into the file, beside a person's, which win; returns those of the layer.

    A person's lines about other features than the run's present ones stay in `labels-OLD.csv`, which is said.
    """
    lines, key, now = _read(run.path / FILE), _key(run, layer), {}
    by_layer = {name: _of_features(run, name, lines) for name in {layer, *(label.layer for label in lines)}}
    own = by_layer.pop(layer)
    others = [label for by_feature in by_layer.values() for label in by_feature.values()]
    n_lost = sum(label.is_persons for label in lines) - sum(
        label.is_persons for label in (*own.values(), *others)
    )
    for label in made:
        before = own.get(label.feature, label)
        label = label._replace(extra=before.extra) if before.is_machines else before
        now[label.feature] = label
    now |= {number: label for number, label in own.items() if label.is_persons and number not in now}
    now = {number: label._replace(stamp=_stamp(label, str(METHOD), key)) for number, label in now.items()}
    try:
        if n_lost:
            _put_aside(run.path / FILE, n_lost)
        files.write_text(run.path / FILE, _as_csv([*others, *(now[number] for number in sorted(now))]))
    except OSError as error:
        print(f"the names are not kept for the next time: {error}", file=sys.stderr)
    return now


def labelled(
    run: Run, layer: str, describe: Callable[[], "Sequence[Named]"], partners: Sequence[Partner] = ()
) -> dict[int, Label]:
    """The labels of a layer's live features, by feature: those of labels.csv, where a person's win.

    Where the file has none of these features, `describe` tells their words, and the file is written. With `partners`
    a feature without a word of its own is named after its best one.
    """
    found = read(run, layer)
    made = [label for label in found.values() if label.is_machines] or [
        Label(layer, feature, one.name, CAPTIONS, _as_kept(one.r), _as_kept(one.floor), _told(one))
        for feature, one in enumerate(describe())
        if one.n_top
    ]
    named = [_after_partner(label, partners) for label in made]
    if named == [found.get(label.feature) for label in made]:
        return found
    return write(run, layer, named)


def names_of(run: Run, layer: str, codes: Csr, captions: Sequence[Sequence[str]]) -> dict[int, str]:
    """The `text` of the label of each of a layer's features that has a name, worked out where labels.csv has none.

    `codes` is the layer's features, scipy.sparse [row, feature]; `captions` are those of each row.
    """
    from showing import names, words

    found = labelled(run, layer, lambda: names.described(codes, words.vocabulary(captions)))
    return {number: label.text for number, label in found.items() if label.name}


def _put_aside(file: Path, n_lost: int):
    """Rename the file to the first free `labels-OLD.csv`, `labels-OLD2.csv`, …"""
    free = (file.with_name(f"{OLD}{number}.csv") for number in ("", *range(2, 1000)))
    old = next(path for path in free if not path.exists())
    file.rename(old)
    print(f"{n_lost} labels that were edited are of features of another training: see {old}", file=sys.stderr)


def _key(run: Run, layer: str) -> str:
    """What changes when a layer's features do: from its first part file, and the samples."""
    digest = hashlib.sha256(f"{run.fingerprint} {run.n_samples}\n".encode())
    for part in sorted((run.path / layer).glob("features-*.npz"))[:1]:
        digest.update(part.read_bytes())
    return digest.hexdigest()[:12]


def _stamp(label: Label, method: str, key: str) -> str:
    signed = hashlib.sha256(f"{key} {label.layer} {label.feature} {label.name}".encode()).hexdigest()[:8]
    return f"{method}-{key}-{signed}"


def _of_features(run: Run, layer: str, lines: list[Label]) -> dict[int, Label]:
    """The lines that are of a layer's present features, by feature; a person's without a stamp is, until it gets one."""
    key = _key(run, layer)
    own = [label for label in lines if label.layer == layer and (not label.stamp or label.key == key)]
    return {
        label.feature: label if label.is_machines else label._replace(by=_person(label.by)) for label in own
    }


def _person(by: str) -> str:
    return EDITED if by in (CAPTIONS, PARTNER) else by


def _read(file: Path) -> list[Label]:
    """The lines of the file; none where there is no file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: save it as such, or move it away") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    if missing := [column for column in NEEDED if column not in (reader.fieldnames or ())]:
        raise UserError(
            f"{file} lacks the column {missing[0]!r}: its first line must name {', '.join(NEEDED)}, parted by commas; "
            "mend it, or move it away"
        )
    lines: dict[tuple[str, int], int] = {}
    found = []
    for row in reader:
        label = _label(file, reader.line_num, row)
        first = lines.setdefault((label.layer, label.feature), reader.line_num)
        if first != reader.line_num:
            raise UserError(
                f"{file}: lines {first} and {reader.line_num} are both of feature {label.feature} of {label.layer}: "
                "delete one"
            )
        found.append(label)
    return found


def _label(file: Path, line: int, row: dict[str, str]) -> Label:
    """A line's label. Errors: a feature or an r that is no number, more cells than the first line has."""

    def number(column: str, kind: type) -> float:
        try:
            return kind(row[column])
        except ValueError:
            raise UserError(
                f"{file}, line {line}: {column} is {row[column]!r}, which is no number; mend it, or move the file away"
            ) from None

    if None in row:
        raise UserError(
            f"{file}, line {line} has more cells than the first line: put names with commas in quotes"
        )
    r, floor = (number(column, float) if row.get(column) else None for column in ("r", "floor"))
    extra = {column: text for column, text in row.items() if column not in COLUMNS}
    words, stamp = row.get("words", ""), row.get("stamp", "")
    return Label(
        row["layer"], int(number("feature", int)), row["name"], row["by"], r, floor, words, stamp, extra
    )


def _as_csv(labels: list[Label]) -> str:
    """The file's text, all columns that any line has."""
    own = dict.fromkeys(column for label in labels for column in label.extra)
    file = io.StringIO()
    writer = csv.DictWriter(file, (*COLUMNS, *own), restval="", lineterminator="\n")
    writer.writeheader()
    for label in labels:
        line = label._asdict()
        extra = line.pop("extra")
        line |= {column: _rounded(line[column]) for column in ("r", "floor")}
        writer.writerow(line | extra)
    return file.getvalue()


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.{DECIMALS}f}"


def _told(named: "Named") -> str:
    return "; ".join(f"{word.word} {_short(word.r)}" for word in named.words)


def _as_kept(r: float | None) -> float | None:
    """As labels.csv has it."""
    return None if r is None else round(float(r), DECIMALS)


def _short(r: float) -> str:
    """Two decimals, as ".58"."""
    return f"{r:.2f}".replace("0.", ".", 1)


def _after_partner(label: Label, partners: Sequence[Partner]) -> Label:
    """The label of a feature without a word, named after the partner that it correlates with most; else as it is."""
    if not partners or (label.name and label.by == CAPTIONS):
        return label
    feature = label.feature
    known = [
        one for one in partners if one.feature[feature] >= 0 and one.names.get(int(one.feature[feature]))
    ]
    best = max(known, key=lambda one: np.nan_to_num(one.held_out[feature]), default=None)
    if best is None or not best.held_out[feature] >= PRESENT:  # NaN: too rare to tell
        return label._replace(name="", by=CAPTIONS, r=None)
    partner, r = int(best.feature[feature]), _as_kept(best.held_out[feature])
    name = f"≈ {best.run} {partner} '{best.names[partner]}' {_short(best.held_out[feature])}"
    return label._replace(name=name, by=PARTNER, r=r)
