"""A study's file, read as the commands that it stands for.

A file has the tables [train] (flags of every train command), [data.NAME] and [encoders.NAME] (further flags of theirs),
and [wmppc.NAME] (without `target`: the sources against each other), [comp_sharedness.NAME] and [show.NAME] (flags of that
script, with encoders in place of runs). A `data` in a table names the data sets that it is for. Keys are
the scripts' flags, which the scripts' own parsers check; `true` gives a flag alone. Scripts are named, not imported, as a
process names them.
"""

import importlib
import re
import shlex
import tomllib
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import features
import wrappedmodels
from plumbing.errors import UserError
from training import flags

# The scripts that compare and show, and their flags that name runs. show.py writes the names of features that the tables
# of comp_sharedness.py have, so it comes first: a study that was stopped ends with the same tables.
RUNS = {
    "wmppc": ("source", "target"),
    "show": ("run", "report", "compare", "min_group", "max_group"),
    "comp_sharedness": ("source", "min_group", "max_group"),
}
PARTS = ("train", "data", "encoders", *RUNS)
OUTPUTS = ("csv", "json", "plot", "out")  # flags that name what is written
OWN = ("runname", "overwrite")  # flags that a study sets by itself

Table = dict[str, object]  # flags without their dashes, and their values
Tables = dict[str, Table]  # by name
Recorded = dict[str, dict[str, list[str]]]  # the runs by data set and encoder


class Study(NamedTuple):
    """The tables of a file: flags of every train command, data sets, encoders, and comparisons and pictures by script."""

    train: Table
    data: Tables
    encoders: Tables
    shown: dict[str, Tables]


class Step(NamedTuple):
    """One command of a study. `entry` is its table's name, to which `name` adds the data set where there are several."""

    part: str
    entry: str
    name: str
    script: str
    words: list[str]
    records: tuple[str, ...] = ()  # the runs of a train command
    needs: tuple[str, ...] = ()  # the runs that are compared or shown
    written_in: Mapping[str, str] = {}  # the table of each flag of a train command

    def parse(self) -> Namespace:
        """What the script makes of its flags. Error: it refuses them."""
        try:
            return importlib.import_module(self.script).parse(self.words)
        except UserError as mistake:
            named = re.findall(r"--([\w-]+)", str(mistake))
            tables = dict.fromkeys([self.table(named), self.table([])])
            raise UserError(f"{', for '.join(tables)}, {self}: {mistake}") from mistake

    def table(self, named: Sequence[str]) -> str:
        """The table in which the first of the named flags is written that is in any; the step's own where none is."""
        found = [self.written_in[flag] for flag in named if flag in self.written_in]
        return f"[{found[0] if found else f'{self.part}.{self.entry}'}]"

    def __str__(self) -> str:
        return shlex.join(["uv", "run", f"{self.script}.py", *self.words])


def read(file: Path) -> Study:
    """Read a study. Errors: no such file, no TOML, a part that is unknown or no table, a value that is no flag's."""
    try:
        with open(file, "rb") as opened:
            found = tomllib.load(opened)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; name the file of a study") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no TOML: {error} (a name may be given once)") from error
    for part in found:
        if part not in PARTS:
            raise UserError(f"{file}: {part!r} is no part of a study: it has {', '.join(PARTS)}")
    for part in ("data", "encoders"):
        if not found.get(part):
            raise UserError(f"{file} has no [{part}.NAME]: a study needs at least one")
    shown = {script: tables(script, found.get(script, {})) for script in RUNS}
    train = tables("", {"train": found.get("train", {})})["train"]
    return Study(train, tables("data", found["data"]), tables("encoders", found["encoders"]), shown)


def tables(part: str, entries: object) -> Tables:
    """The tables of a part, checked: each holds flags with values that a flag can have."""
    for name, table in check_table(part, entries).items():
        where = f"{part}.{name}".lstrip(".")
        check_values(where, check_table(where, table))
    return check_table(part, entries)


def check_table(name: str, value: object) -> dict:
    """Refuse what is no table."""
    if not isinstance(value, dict):
        raise UserError(f"[{name}] is {value!r}, and has to be a table of flags")
    return value


def check_values(name: str, table: Table):
    """Refuse values that no flag takes, and the flags that a study sets."""
    for key, value in table.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, str | int | float) for one in values):
            raise UserError(f"[{name}] {key} is {value!r}: give a text, a number, true, or a list of them")
        if key in OWN and not name.startswith("show"):
            raise UserError(f"[{name}] {key}: leave it out, a study sets it by itself")


def steps(study: Study, overwrite: bool = False) -> list[Step]:
    """Every command of a study, in order: what is trained, by data set, then what is compared and shown.

    `overwrite`: train again what there is. Errors: flags that a script refuses, two runs of one name, two steps that
    write one file, an encoder that is compared and never recorded.
    """
    recorded: Recorded = {data: {} for data in study.data}
    found = []
    for step, data in training(study, overwrite):
        found.append(step)
        recorded[data][step.entry] = list(step.records)
    check_unique(found)
    for script, entries in study.shown.items():
        for name, table in entries.items():
            found += compared(script, name, table, recorded)
    check_outputs(found)
    return found


def training(study: Study, overwrite: bool) -> Iterator[tuple[Step, str]]:
    """The train commands, each with the name of its data set."""
    for data, its in study.data.items():
        for name, table in study.encoders.items():
            if data in chosen_data(f"encoders.{name}", table, study.data):
                run = name if len(study.data) == 1 else f"{name}_{data}"
                common = {"train": study.train, f"data.{data}": its}
                yield train_step(name, run, table, common, overwrite), data


def chosen_data(where: str, table: Table, known: Mapping[str, object]) -> list[str]:
    """The data sets of an encoder or a comparison: all, or those that its `data` names."""
    asked = table.get("data", list(known))
    names = [str(one) for one in (asked if isinstance(asked, list) else [asked])]
    for name in names:
        if name not in known:
            raise UserError(f"[{where}] data: there is no [data.{name}]; there are {', '.join(known)}")
    return names


def without_data(table: Table) -> Table:
    """The flags of a table: all but the `data` that it is for."""
    return {key: value for key, value in table.items() if key != "data"}


def train_step(name: str, run: str, table: Table, common: Tables, overwrite: bool) -> Step:
    """The command that records an encoder on a data set; flags of its own `table` win over those of the `common` ones."""
    own = f"encoders.{name}"
    if "model" not in table:
        raise UserError(f"[{own}] names no model: give model, one of {', '.join(models())}")
    try:
        features.run_path(run)
        is_text = wrappedmodels.find_row(str(table["model"])).modality == "text"
    except UserError as mistake:
        raise UserError(f"[{own}]: {mistake}") from mistake
    all_flags = without_data(table)
    written_in = dict.fromkeys(all_flags, own)
    for where, its in common.items():
        added = {flag: its[flag] for flag in its if written_in.get(flag) != own}
        all_flags |= added
        written_in |= dict.fromkeys(added, where)
    words = to_words(all_flags)
    words += ["--runname", run, *["--overwrite"] * overwrite]
    script = "train_text" if is_text else "train_image"
    step = Step("encoders", name, run, script, words, written_in=written_in)
    return step._replace(records=tuple(flags.variants_of(step.parse(), run)))


def models() -> list[str]:
    """The encoders that there are, without the demo's."""
    return [name for name in wrappedmodels.REGISTRY if not name.startswith("Demo")]


def compared(script: str, name: str, table: Table, recorded: Recorded) -> Iterator[Step]:
    """The commands of a comparison or a picture, one for each of its data sets; {data} stands for its name."""
    for data in chosen_data(f"{script}.{name}", table, recorded):
        filled = {key: fill(value, data) for key, value in without_data(table).items()}
        if script == "wmppc" and "source" in filled:
            filled = {"source": filled["source"], "target": filled["source"]} | filled  # a matrix
        needs = []
        for key in RUNS[script]:
            if key in filled:
                runs = [
                    resolve(word, f"{script}.{name}", recorded[data], data) for word in listed(filled[key])
                ]
                filled[key], needs = runs, needs + runs
        full = name if len(recorded) == 1 else f"{name}_{data}"
        step = Step(script, name, full, script, to_words(filled), needs=tuple(dict.fromkeys(needs)))
        step.parse()
        yield step


def fill(value: object, data: str) -> object:
    """A value with the data set's name in place of {data}."""
    if isinstance(value, list):
        return [fill(one, data) for one in value]
    return value.replace("{data}", data) if isinstance(value, str) else value


def listed(value: object) -> list[str]:
    """One value, or several, as words."""
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def resolve(word: str, where: str, recorded: dict[str, list[str]], data: str) -> str:
    """The run that a word names: an encoder's first (of its first seed), another, or any by its full name.

    With several data sets clip_seed1 is short for clip_DATA_seed1.
    """
    if word in recorded:
        return recorded[word][0]
    for name, runs in recorded.items():
        for run in runs:
            if word == name + run.removeprefix(f"{name}_{data}"):
                return run
    if any(word in runs for runs in recorded.values()):
        return word
    raise UserError(
        f"[{where}] names {word!r}, which the study never records on {data}; it records {', '.join(recorded)}"
    )


def to_words(table: Table) -> list[str]:
    """A table as a command line's words; true is a flag alone, false is none."""
    words = []
    for key, value in table.items():
        if value is True:
            words.append(f"--{key}")
        elif value is not False:
            words += [f"--{key}", *listed(value)]
    return words


def check_unique(found: list[Step]):
    """Refuse two runs of one name."""
    made: dict[str, Step] = {}
    for step in found:
        for run in step.records:
            if run in made:
                raise UserError(
                    f"two runs are named {run!r}, of [encoders.{made[run].entry}] and [encoders.{step.entry}]: "
                    "rename one of them"
                )
            made[run] = step


def check_outputs(found: list[Step]):
    """Refuse two commands that would write one file; sheets of several runs may go to one folder."""
    written: dict[str, Step] = {}
    for step in found:
        for file in outputs(step):
            other = written.setdefault(file, step)
            if other is not step:
                raise UserError(
                    f"[{step.part}.{step.entry}] and [{other.part}.{other.entry}] both write {file}: name another, "
                    "in which {data} stands for the data set"
                )


def outputs(step: Step) -> list[str]:
    """The files that a comparison or a picture writes, by their flags."""
    flags = vars(step.parse()) if step.needs else {}
    is_sheets = flags.get("run") and not flags.get("html") and not flags.get("sheet")
    return [str(flags[key]) for key in OUTPUTS if flags.get(key) and not (key == "out" and is_sheets)]


def select(found: list[Step], names: list[str] | None) -> list[Step]:
    """The steps of these names (of a table, or of a step); all for None."""
    if names is None:
        return found
    known = dict.fromkeys(name for step in found for name in (step.entry, step.name))
    for name in names:
        if name not in known:
            raise UserError(f"--only {name!r} is no step of the study: there are {', '.join(known)}")
    return [step for step in found if step.entry in names or step.name in names]
