"""Carry out a study's steps: train what is not there yet, then compare and show; failures wait until the end."""

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from plumbing import files
from studying.recorded import is_recorded
from studying.steps import Step

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path("imgs/study")  # what train commands on GPUs print, a file each
STOPPED = (130, 141)  # exit codes of a user's interruption, and of a reader of our output that has left


class Outcome(NamedTuple):
    """What a study gave: the results of the scripts that ran here, and why steps failed, by step."""

    results: dict[str, object]
    failures: dict[str, str]


def carry_out(steps: Sequence[Step], gpus: Sequence[str] | None = None) -> Outcome:
    """Carry out the steps in order; what is recorded already is left as it is, but for --overwrite.

    Train commands run as a process each on `gpus` (names for CUDA_VISIBLE_DEVICES; None: all that there are), and in
    this process, one after another, where there is none: importing torch takes seconds.
    Error: a run was recorded with other settings; found before anything runs.
    """
    trained = [step for step in steps if step.records]
    waiting = [step for step in trained if "--overwrite" in step.words or not is_recorded(step)]
    for step in trained:
        if step not in waiting:
            print(f"recorded: {', '.join(step.records)}")
    outcome = Outcome({}, {})
    if waiting and gpus is None:
        gpus = all_gpus()
    if gpus:
        outcome.failures.update(on_gpus(waiting, gpus))
    else:
        for step in waiting:
            here(step, outcome)
    missing = {run for step in waiting if step.name in outcome.failures for run in step.records}
    for step in steps:
        if lacking := [run for run in step.needs if run in missing]:
            more = f" and {len(lacking) - 1} more" * (len(lacking) > 1)
            outcome.failures[step.name] = f"not run, since {lacking[0]}{more} could not be recorded"
        elif step.needs:
            here(step, outcome)
    return outcome


def name_failures(outcome: Outcome):
    """Leave with exit code 1 where steps failed, and say which and why."""
    if outcome.failures:
        lines = [f"{name}: {why}" for name, why in outcome.failures.items()]
        print(f"{len(lines)} failed:", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(1)


def here(step: Step, outcome: Outcome):
    """Run a step's script in this process, its command line printed first."""
    print(f"\n$ {step}", flush=True)
    try:
        outcome.results[step.name] = importlib.import_module(step.script).main(step.words)
    except SystemExit as left:
        if left.code in STOPPED:
            raise
        outcome.failures[step.name] = f"exit code {left.code}: {step}"
    except Exception as error:  # a mistake of ours in one step must not cost the others
        traceback.print_exc()
        outcome.failures[step.name] = f"{type(error).__name__}: {step}"


class Child(NamedTuple):
    """A train command at work."""

    step: Step
    gpu: str
    process: subprocess.Popen[bytes]
    log: Path


def on_gpus(steps: Sequence[Step], gpus: Sequence[str]) -> dict[str, str]:
    """Run train commands as processes of their own, each on the next free GPU; returns why some failed, by step."""
    waiting, free, working, failures = list(steps), list(gpus), [], {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes are ended too
    try:
        while waiting or working:
            while waiting and free:
                working.append(start(waiting.pop(0), free.pop(0)))
            time.sleep(0.2)
            for child in [child for child in working if child.process.poll() is not None]:
                working.remove(child)
                free.append(child.gpu)
                code = child.process.returncode
                print(f"{'failed' if code else 'recorded'}: {child.step.name}", flush=True)
                if code:
                    failures[child.step.name] = f"exit code {code}, see {child.log}: {child.step}"
    finally:  # interrupted: what was begun is resumed by the same command
        for child in working:
            child.process.terminate()
            child.process.wait()
        signal.signal(signal.SIGTERM, before)
    return failures


def start(step: Step, gpu: str) -> Child:
    """Start a train command on a GPU; what it prints is added to its log."""
    log = LOGS / f"{step.name}.log"
    files.make_folder(LOGS)
    print(f"\n$ CUDA_VISIBLE_DEVICES={gpu} {step} >>{log}", flush=True)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    with log.open("ab") as output:
        words = [sys.executable, str(ROOT / f"{step.script}.py"), *step.words]
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )  # what would ask, as a tracker for its account, fails instead of waiting unseen
    return Child(step, gpu, process, log)


def all_gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(count)])[:count]
