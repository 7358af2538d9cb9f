"""The names of the runs that a train command makes. Nothing here needs torch, which takes seconds to import."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import data
import features
import wrappedmodels
from plumbing.commandline import chosen
from plumbing.errors import UserError
from training.unfinished import Unfinished


def open_data(arguments: argparse.Namespace) -> data.Pairs:
    """Open the data set of a train command; refuse a run's name that is taken, if possible before the data is read."""
    if arguments.runname:
        check_names(arguments, None)
    pairs = data.open_pairs(**chosen(arguments, data.FLAGS))
    check_names(arguments, pairs)
    return pairs


def check_names(arguments: argparse.Namespace, pairs: Any):
    """Refuse a bad name, and a folder that may not be written to, before anything that takes time."""
    paths = [features.run_path(name) for name in name_variants(arguments, pairs)]
    folders = [Unfinished(path) for path in paths]
    for one in folders:
        one.check_place()
        check_given(arguments.sae, one.folder)
    if os.environ.get("RANK", "0") != "0":  # the first process, which locks the folders, may be ahead
        return
    marked = not arguments.overwrite and any(one.mark() for one in folders)
    for one in folders:
        one.check_idle()
        if not arguments.overwrite and not (marked and features.is_whole(one.folder)):
            one.check(None)


def check_given(sae: str | None, path: Path):
    """Refuse SAEs that lie in the run folder which is to be written, also by way of a link."""
    given = Path(sae) if sae else None
    places = [given, *given.glob("*"), *given.glob("*/*")] if given else []
    for place in places:
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path)):
            raise UserError(
                f"--sae {sae}: {place} lies in {path}, which this command would write: choose another --runname"
            )


def name_variants(arguments: argparse.Namespace, pairs: Any) -> dict[str, tuple[int | None, int]]:
    """The k (None: the encoder's own) and the seed of each run by its name, which several of them end."""
    name = arguments.runname or default_name(arguments, pairs)
    top_ks = arguments.top_k or [None]
    return {
        name + f"_k{k}" * (len(top_ks) > 1) + f"_seed{seed}" * (len(arguments.seeds) > 1): (k, seed)
        for seed in arguments.seeds
        for k in top_ks
    }


def default_name(arguments: argparse.Namespace, pairs: Any) -> str:
    """The encoder and the data set: `clipvision_coco`, `clipvision-vit-b-32-quickgelu_coco`, `clipvision_demo`."""
    name = arguments.model.lower()
    if pairs.name == "demo":
        name = name.removeprefix("demo")
    if arguments.checkpoint not in (None, wrappedmodels.REGISTRY[arguments.model].checkpoint):
        words = arguments.checkpoint.lower().split(":")[-1]
        name += "-" + "".join(c if c.isalnum() else "-" for c in words).strip("-")
    if arguments.random_weights is not None:
        name += f"-random{arguments.random_weights}"
    dataset = re.sub(r"[^\w.+-]+", "-", pairs.name).strip("-")  # a folder's name may hold spaces
    return f"{name}_{dataset}"
