"""The import rule: a file imports only what stands below it in the README's list."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (ROOT / "README.md").read_text(encoding="utf-8").split("```order\n")[1].split("```")[0]


def allowed(order: str) -> dict[str, set[str]]:
    """What each file may import: the files of all lines below its own, and what its room's list has after it."""
    below, found = set(), {}
    for line in reversed(order.splitlines()):
        for room, names in re.findall(r"(?:(\w+)/ )?(\w[\w ]*)", line):
            files = [room, *(f"{room}.{name}" for name in names.split())] if room else names.split()
            found |= {
                file: below | set(files[place + 1 :] if room else []) for place, file in enumerate(files)
            }
        below = below | found.keys()
    return found


ALLOWED = allowed(ORDER)


def path(module: str) -> Path:
    file = ROOT / module.replace(".", "/")
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def imported(source: str) -> set[str]:
    """The modules of the house that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & ALLOWED.keys()
            found |= inner or {str(node.module)}
    return found & ALLOWED.keys()


@pytest.mark.parametrize("module", ALLOWED)
def test_a_file_imports_only_what_stands_below_it(module):
    assert imported(path(module).read_text(encoding="utf-8")) <= ALLOWED[module]


def test_every_file_has_a_place_in_the_list():
    rooms = {path(module).parent for module in ALLOWED}
    assert {file for room in rooms for file in room.glob("*.py")} == set(map(path, ALLOWED))


def test_the_rule_tells_up_from_down():
    found = allowed("top other\nupstairs/ door hall | attic/ box\ncellar")
    assert found == {
        "top": {"upstairs", "upstairs.door", "upstairs.hall", "attic", "attic.box", "cellar"},
        "other": found["top"],
        "upstairs": {"upstairs.door", "upstairs.hall", "cellar"},
        "upstairs.door": {"upstairs.hall", "cellar"},
        "upstairs.hall": {"cellar"},
        "attic": {"attic.box", "cellar"},
        "attic.box": {"cellar"},
        "cellar": set(),
    }


def test_an_import_is_seen_however_it_is_written():
    assert imported("import wmppc, numpy\ndef f():\n from training import fit, Settings\n import sae") == {
        "wmppc",
        "training.fit",
        "sae",
    }
    assert imported("from training import Settings") == {"training"}
    assert imported("from comparing.results import Score") == {"comparing.results"}
