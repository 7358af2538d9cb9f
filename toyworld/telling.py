"""The captions of a scene: a style, an order and synonyms of its own for each."""

from typing import NamedTuple

from toyworld.things import ARRANGEMENTS, COLOURS, SHAPES, SIZES, Dice, Scene, Thing

ROW_WORDS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
RELATIONS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
STYLES = {"plain": "", "picture": "a picture of ", "there": "there is ", "seen": "we see "}

FRAME_WORDS = ("a", "and", "at", "in", "is", "left", "of", "on", "picture", "right", "see", "the", "there")
FRAME_WORDS += ("things", "three", "to", "we", "above", "over", "below", "under")
SYNONYMS = [words for table in (SHAPES, SIZES, ROW_WORDS) for words in table.values()]
WORDS = tuple(sorted({*FRAME_WORDS, *COLOURS, *(word for words in SYNONYMS for word in words)}))
PUNCTUATION = (",", ":")


class Caption(NamedTuple):
    """A sentence about a scene and its own two factors; `relation` is None unless there are two things."""

    text: str
    style: str
    relation: str | None


def caption_of(shown: Scene, dice: Dice) -> Caption:
    """One caption of a scene, as the dice fall."""
    style = dice.pick(list(STYLES))
    if shown.arrangement is None:
        return Caption(STYLES[style] + _list(shown, dice), style, None)
    text, relation = _pair(shown.things, shown.arrangement, dice)
    return Caption(STYLES[style] + text, style, relation)


def _list(shown: Scene, dice: Dice) -> str:
    if len(shown.things) == 1:
        row, column = shown.things[0].position.split()
        where = f"{dice.pick(('at', 'in'))} the {dice.pick(ROW_WORDS[row])} {column}"
        return f"{_name(shown.things[0], dice)} {where}"
    first, second, third = (_name(thing, dice) for thing in dice.order(shown.things))
    return f"three things: {first}, {second} and {third}"


def _pair(things: tuple[Thing, ...], arrangement: str, dice: Dice) -> tuple[str, str]:
    relation = dice.pick(ARRANGEMENTS[arrangement])
    ordered = things if relation in ("above", "left of") else things[::-1]
    first, second = (_name(thing, dice) for thing in ordered)
    row, column = things[0].position.split()
    where = f"at the {row}" if arrangement == "side by side" else f"on the {column}"
    return f"{first} {dice.pick(RELATIONS[relation])} {second} {where}", relation


def _name(thing: Thing, dice: Dice) -> str:
    return f"a {dice.pick(SIZES[thing.size])} {thing.colour} {dice.pick(SHAPES[thing.shape])}"
