"""The command line of the two train scripts: from flags to an encoder, a data set, and runs with their settings."""

import argparse
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import data
import features
import wrappedmodels
from encoders.row import PRECISIONS, Row
from plumbing.commandline import Flags, Parser, above_zero, add_flags, chosen, layer, natural
from plumbing.errors import UserError, did_you_mean
from training import fetched, settings
from training.resume import check_names
from training.settings import Settings
from training.trackers import OPTIONS, check

if TYPE_CHECKING:
    from training.estimate import Estimate

Rows = Mapping[str, Row]

KINDS = {"image": "pictures", "text": "text", "audio": "sounds"}  # what an encoder takes, by modality

LOAD_FLAGS: Flags = {  # the arguments of wrappedmodels.load
    "--random_weights": {
        "type": natural,
        "metavar": "SEED",
        "help": "draw the encoder's weights at random, from this seed: a control",
    },
    "--token": {"choices": ("own", "first", "mean"), "default": "own", "help": "which token is recorded"},
    "--encoder_precision": {
        "choices": PRECISIONS,
        "default": "float32",
        "help": "of the encoder's arithmetic; its SAEs are trained in float32 all the same",
    },
    "--blocks": {"metavar": "PATH", "help": "dotted path of the modules to hook, where the table has none"},
}

RUN_FLAGS: Flags = {  # the arguments of experiment.train_all
    "--sae": {
        "metavar": "DIR",
        "help": "record with these SAEs, train none: a folder in SAELens' layout, or OWNER/NAME[/FOLDER] of the hub; "
        "random: with a frozen random dictionary, a control",
    },
    "--checkpoint_every": {
        "type": above_zero,
        "default": 60.0,
        "metavar": "SECONDS",
        "help": "how often to write a checkpoint, from which a killed run resumes; less often where that is slow",
    },
    "--log": {
        "choices": tuple(OPTIONS),
        "help": "send the lines of training.jsonl there too (its package is installed on its own)",
    },
    "--overwrite": {"action": "store_true", "help": "replace a run of that name"},
    "--workers": {"type": natural, "default": 0, "help": "processes that read and decode items"},
}


def run(arguments: argparse.Namespace) -> "list[features.Run] | Estimate":
    """Run a train script with its parsed flags: train, print the tables; returns the runs.

    With --dry_run it prints and returns an estimate of what that would cost.

    Mistakes that can be found without torch, which takes seconds to import, are reported before that.
    """
    if arguments.runname:
        check_names(variants_of(arguments, arguments.runname), arguments.sae, arguments.overwrite)
    pairs = data.open_pairs(**chosen(arguments, data.FLAGS))
    name = arguments.runname or default_name(
        arguments.model, arguments.checkpoint, arguments.random_weights, pairs.name
    ) + "_random-sae" * (arguments.recipe == features.RANDOM_SAE)
    variants = variants_of(arguments, name)
    check_names(variants, arguments.sae, arguments.overwrite)
    if arguments.sae:
        fetched.locate(arguments.sae)

    from plumbing import processes
    from training import experiment, manifest

    started = time.monotonic()
    options = chosen(arguments, LOAD_FLAGS) | {"device": processes.own_device(arguments.device)}
    with experiment.in_one_line(arguments.batch_size, arguments.overwrite):
        encoder = wrappedmodels.load(arguments.model, arguments.checkpoint, **options)
        layers = asked_layers(arguments.layers, arguments.sae)
        options = chosen(arguments, RUN_FLAGS) | {"command": arguments.command, "started": started}
        if arguments.dry_run:
            found = experiment.dry_run(encoder, pairs, variants, layers, **options)
            if processes.team().rank == 0:
                print(found.table())
            return found
        runs = experiment.train_all(encoder, pairs, variants, layers, **options)
    for one in runs:
        print(manifest.table(one))
    return runs


def parse(argv: list[str] | None, description: str | None, file: str, rows: Rows, default_model: str):
    """Parse the command line of a train script, whose `__file__` is `file`; `rows` are the encoders that it takes.

    Adds `command`, the words typed, and settles `model`, `checkpoint` and `dataset`.
    """
    parser = Parser(description, file)
    add_encoder_flags(parser, rows)
    add_flags(parser, data.FLAGS)
    add_settings(parser)
    parser.add_argument(
        "--runname", help="the run's folder in sae_features/; by default encoder and data set"
    )
    add_flags(parser, RUN_FLAGS)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="time a few batches, print the memory, the disk and the time that the command would take, and stop",
    )
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(words)
    arguments.command = [parser.prog, *words]
    choose_encoder(arguments, rows, default_model)
    if arguments.sae == features.RANDOM_SAE:
        arguments.sae, arguments.recipe = None, features.RANDOM_SAE
    if arguments.recipe == features.RANDOM_SAE and (arguments.sae or arguments.lr or arguments.epochs > 1):
        raise UserError("--sae random trains nothing: leave --lr, --epochs and a folder of SAEs out")
    own = len(arguments.seeds) > 1 or arguments.top_k or arguments.expansion_factor
    if arguments.sae and (own or arguments.lr or arguments.epochs > 1 or arguments.recipe != Settings.recipe):
        raise UserError(
            "--sae brings trained SAEs of their own k, width and seed: leave --top_k, --expansion_factor, --seeds, "
            "--lr, --epochs and --recipe out"
        )
    if arguments.sae:
        fetched.check(arguments.sae)
    if arguments.log:
        check(arguments.log)
    asked_layers(arguments.layers, arguments.sae)
    arguments.dataset = arguments.dataset or ("demo" if arguments.model.startswith("Demo") else "coco")
    if arguments.dataset == "text" and rows[arguments.model].modality != "text":
        raise UserError(data.CAPTIONS_ONLY)
    return arguments


def add_encoder_flags(parser: Parser, rows: Rows):
    """Add the flags that choose the encoder and its layers."""
    parser.add_argument(
        "--model", metavar="NAME", help=f"the kind of encoder: {', '.join(rows)}; by default the demo's CLIP"
    )
    parser.add_argument(
        "--checkpoint", help="its weights: a hub name or a folder; by default the model's own"
    )
    own = {row.flag for row in rows.values()}
    for (
        flag
    ) in family_flags():  # those of the other script are known too, so that `choose_encoder` can name it
        words = "another spelling of --checkpoint" if flag in own else argparse.SUPPRESS
        parser.add_argument(flag, metavar="CHECKPOINT", help=words)
    add_flags(parser, LOAD_FLAGS)
    parser.add_argument(
        "--layers",
        type=layer,
        nargs="+",
        metavar="N",
        help="the blocks to hook, -1 being the last, or all; by default the last only (with --sae: all there are)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; by default a GPU where there is one")


def add_settings(parser: Parser):
    """Add a flag for each field of `Settings`; --top_k and --seeds take several values, a run for each."""
    flags: Flags = settings.FLAGS
    for flag, options in flags.items():
        several = {**options, "nargs": "+", "help": f"{options['help']}; several: a run for each"}
        if flag == "--seed":
            kind, default, text = options["type"], [options["default"]], several["help"]
            parser.add_argument("--seeds", flag, nargs="+", type=kind, default=default, help=text)
        else:
            add_flags(parser, {flag: several if flag == "--top_k" else options})


def family_flags() -> list[str]:
    """The families' own spellings of --checkpoint."""
    return sorted({row.flag for row in wrappedmodels.REGISTRY.values()} - {"--checkpoint", ""})


def choose_encoder(arguments: argparse.Namespace, rows: Rows, default_model: str):
    """Set `arguments.model` and `arguments.checkpoint` from whichever of the encoder's flags was typed."""
    flags = [flag.removeprefix("--") for flag in family_flags()]
    typed = {flag: value for flag in flags if (value := getattr(arguments, flag)) is not None}
    if len(typed) + (arguments.checkpoint is not None) > 1:
        raise UserError(f"one encoder a run: give --checkpoint or --{next(iter(typed))}, not several of them")
    flag, value = next(iter(typed.items()), (None, arguments.checkpoint))
    refuse_others(rows, arguments.model, flag, value)
    if arguments.model is None:
        fitting = [name for name, row in rows.items() if flag and row.flag == f"--{flag}"]
        fitting += [name for name, row in rows.items() if value in row.checkpoints]
        if value and not fitting:
            raise UserError(
                f"--checkpoint {value!r} could be any kind of encoder: add --model, one of {', '.join(rows)}"
            )
        arguments.model = fitting[0] if fitting else default_model
    if arguments.model not in rows:
        close = did_you_mean(arguments.model, rows, 0.65)
        raise UserError(
            f"--model {arguments.model!r} is unknown; {close}--model takes one of {', '.join(rows)}"
        )
    own = rows[arguments.model].flag
    if flag and own != f"--{flag}":
        raise UserError(f"--{flag} does not go with --model {arguments.model}: type {own} or --checkpoint")
    arguments.checkpoint = value


def refuse_others(rows: Rows, model: str | None, flag: str | None, checkpoint: str | None):
    """Refuse an encoder of the other train script, by whichever of its names was typed."""
    others = [(name, row) for name, row in wrappedmodels.REGISTRY.items() if name not in rows]
    for name, row in others:
        if model == name:
            typed = f"--model {name}"
        elif flag and row.flag == f"--{flag}" and all(own.flag != row.flag for own in rows.values()):
            typed = row.flag
        elif model is None and checkpoint in set(row.checkpoints).difference(
            *(own.checkpoints for own in rows.values())
        ):
            typed = f"--checkpoint {checkpoint}"
        else:
            continue
        script = "train_text.py" if row.modality == "text" else "train_image.py"
        raise UserError(f"{typed} is an encoder of {KINDS[row.modality]}: use {script}")


def asked_layers(typed: list[int | str] | None, sae: str | None) -> list[int] | None:
    """The layers that --layers asks for, None: all. By default the last one; with --sae, all that it has."""
    if typed and "all" in typed and len(typed) > 1:
        raise UserError("--layers all is all of them: leave the numbers out, or all")
    if typed is None:
        return None if sae else [-1]
    return None if "all" in typed else [int(number) for number in typed]


def variants_of(arguments: argparse.Namespace, name: str) -> dict[str, Settings]:
    """The settings of each run, by its name."""
    typed = {one.name: getattr(arguments, one.name) for one in fields(Settings) if one.name != "seed"}
    return name_variants(name, Settings(**typed | {"top_k": None}), arguments.top_k, arguments.seeds)


def name_variants(
    name: str, base: Settings, top_ks: list[int] | None, seeds: list[int]
) -> dict[str, Settings]:
    """`base` with each k and each seed; where there are several, the run's name ends in them."""
    data_seed = seeds[0] if base.data_seed is None else base.data_seed
    ks = top_ks or [None]
    return {
        name + f"_k{k}" * (len(ks) > 1) + f"_seed{seed}" * (len(seeds) > 1): replace(
            base, top_k=k, seed=seed, data_seed=data_seed
        )
        for seed in seeds
        for k in ks
    }


def default_name(model: str, checkpoint: str | None, random_weights: int | None, dataset: str) -> str:
    """The encoder and the data set: `clipvision_coco`, `clipvision-vit-b-32-quickgelu_coco`, `clipvision_demo`."""
    name = model.lower()
    if dataset == "demo":
        name = name.removeprefix("demo")
    if checkpoint and checkpoint != wrappedmodels.REGISTRY[model].checkpoint:
        words = checkpoint.lower().split(":")[-1]
        name += "-" + "".join(c if c.isalnum() else "-" for c in words).strip("-")
    if random_weights is not None:
        name += f"-random{random_weights}"
    dataset = re.sub(r"[^\w.+-]+", "-", dataset).strip("-")  # a folder's name may hold spaces
    return f"{name}_{dataset}"
