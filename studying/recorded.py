"""Whether the runs of a train command are there, and recorded with the settings that a study asks for."""

import contextlib
import importlib
from argparse import Namespace
from dataclasses import asdict

import features
import wrappedmodels
from data import FLAGS
from plumbing.errors import UserError
from studying.steps import Step
from training import flags
from training.unfinished import first_difference

Facts = dict[str, object]


def is_recorded(step: Step) -> bool:
    """Whether all runs of a train command are whole. Error: one was recorded otherwise, with the first difference."""
    whole = [run for run in step.records if features.is_whole(features.run_path(run))]
    arguments = step.parse()
    for name in whole:
        run = features.open_run(name)
        then, now = recorded(run.manifest, step.script), asked(arguments, name)
        known = [key for key in now if key in then]  # an older run.json says less
        before, after = ({key: facts[key] for key in known} for facts in (then, now))
        if found := first_difference(before, after):
            raise UserError(
                f"run {name!r} was recorded otherwise than {step.table(found.split()[:1])} says ({found}): change "
                f"the file, name another encoder, or record it again: {step} --overwrite"
            )
    return len(whole) == len(step.records)


def asked(arguments: Namespace, run: str) -> Facts:
    """What a train command asks for in one of its runs, by the names of run.json."""
    row = wrappedmodels.find_row(arguments.model)
    settings = asdict(flags.variants_of(arguments, arguments.runname)[run])
    source = {flag.removeprefix("--"): getattr(arguments, flag.removeprefix("--")) for flag in FLAGS}
    settings["top_k"] = settings["top_k"] or row.top_k
    settings["expansion_factor"] = settings["expansion_factor"] or row.expansion_factor
    own = row.token if arguments.token == "own" else arguments.token
    return {
        "model": arguments.model,
        "checkpoint": arguments.checkpoint or row.checkpoint,
        "blocks": arguments.blocks,
        "random_weights": arguments.random_weights,
        "encoder_precision": arguments.encoder_precision,
        **({"token": own} if own else {}),  # some models are asked for it when they are loaded
        "layers": layers(arguments),
        **{key: value for key, value in source.items() if key != "data_root" or value is not None},
        **settings,
        "sae": arguments.sae,
    }


def layers(arguments: Namespace) -> str:
    """The layers that were typed."""
    found = flags.asked_layers(arguments.layers, arguments.sae)
    return "all" if found is None else " ".join(map(str, found))


def recorded(manifest: features.Manifest, script: str) -> Facts:
    """The same of a recorded run, as far as its run.json has it."""
    source = manifest["dataset"].get("source")
    facts = {"encoder_precision": "float32", **manifest["encoder"], **manifest.get("training", {})}
    if "token" in manifest:
        facts["token"] = manifest["token"]
    if source:
        facts |= {flag.removeprefix("--"): source.get(flag.removeprefix("--")) for flag in FLAGS}
        facts["skip_unreadable"] = "unreadable" in source
    facts.pop("layers", None)  # resolved; the study has them as they are typed
    command = manifest.get("command")
    if command and command[0] == f"{script}.py":
        with contextlib.suppress(UserError):  # a folder that it was told of is no longer there
            facts["layers"] = layers(importlib.import_module(script).parse(command[1:]))
    return facts
