"""The import rule: a file imports only what stands below it in the README's list."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = re.search(r"```order\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
PLACES = {}  # module -> (line, room, place in the room)
for line, text in enumerate(LIST.splitlines()):
    for group in text.split("|"):
        room, _, names = (part.strip() for part in group.rpartition("/"))
        PLACES |= {
            f"{room}.{name}".lstrip("."): (line, room, place) for place, name in enumerate(names.split())
        }
        PLACES |= {room: (line, room, -1)} if room else {}
FILES = {module: ROOT / module.replace(".", "/") for module in PLACES}
FILES = {
    name: file / "__init__.py" if file.is_dir() else file.with_suffix(".py") for name, file in FILES.items()
}


def imported(file: Path) -> set[str]:
    """The modules of the house that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & PLACES.keys() or {node.module}
    return found & PLACES.keys()


def is_below(own: tuple, other: tuple) -> bool:
    """Whether a place is on a later line, or further on in the same room."""
    return other[0] > own[0] or (other[:2] == own[:2] and own[1] != "" and other[2] > own[2])


@pytest.mark.parametrize("module", PLACES)
def test_a_file_imports_only_what_stands_below_it(module):
    wrong = {other for other in imported(FILES[module]) if not is_below(PLACES[module], PLACES[other])}
    assert not wrong


def test_every_file_has_a_place_in_the_list():
    rooms = {room for _, room, _ in PLACES.values() if room}
    files = [*ROOT.glob("*.py"), *(file for room in rooms for file in (ROOT / room).glob("*.py"))]
    assert {file.resolve() for file in files} == {file.resolve() for file in FILES.values()}


def test_the_rule_tells_up_from_down():
    assert is_below(PLACES["training.fit"], PLACES["features"])
    assert is_below(PLACES["training.fit"], PLACES["training.settings"])
    assert not is_below(PLACES["training.settings"], PLACES["training.fit"])
    assert not is_below(PLACES["training.fit"], PLACES["showing.tables"])
    assert not is_below(PLACES["wmppc"], PLACES["show"])
