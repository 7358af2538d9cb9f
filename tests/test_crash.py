"""A command that dies at any point, given again, ends with the run folder that it would have made undisturbed.

Half of the deaths are kills, after which the disk has all that was written; half are power cuts, after which it has
what was synced (the slow test tries both at every point).
"""

import json

import pytest
from children import CONTEXT
from crash import sweep

# A step that shares no factor with the pattern of a file's writing (open, sync, rename, sync) meets all of it.
EVERY_TENTH = [("train", 13), ("overwrite", 61), ("train_two", 31), ("train_apart", 31), ("compare", 1)]
EVERY_POINT = [("train", 1), ("overwrite", 1), ("train_two", 1), ("train_apart", 1)]


def die_and_resume(here, command, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        child = CONTEXT.Process(target=sweep, args=(str(here), command, step))
        child.start()
    child.join()
    assert child.exitcode == 0, [(log, log.read_text()[-2000:]) for log in here.glob("*/log*")]
    return json.loads((here / "found.json").read_text())


@pytest.mark.parametrize(("command", "step"), EVERY_TENTH)
def test_a_command_that_died_anywhere_ends_in_the_undisturbed_folder(tmp_path, command, step):
    found = die_and_resume(tmp_path, command, step)
    assert found["points"] >= 5
    assert found["wrong"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("command", "step"), EVERY_POINT)
def test_a_command_that_died_at_every_point_ends_in_the_undisturbed_folder(tmp_path, command, step):
    found = die_and_resume(tmp_path, command, step)
    assert found["points"] > 100
    assert found["wrong"] == []
