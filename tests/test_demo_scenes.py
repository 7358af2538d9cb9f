"""The demo's scenes are what they say, the same everywhere, and its committed encoders know them."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from toyworld import drawing, lessons, probe, scenes, telling, things, train_encoders

ENCODERS = Path(__file__).parent.parent / "toyworld" / "weights"
ROWS = range(3_000)
PICTURES = "2dda9bc3f0a123e9dfcfc7c1c23ee30fabdc91ed65aad0a07df0e86d4b122661"  # sha256, rows 0-199
CAPTIONS = "3cab86bd86fc45851eb05c2b637be885da2713abe67e883273746c505f5b65e6"


@pytest.fixture(scope="module")
def planted():
    """The factors of every row of ROWS as names and a table, [row, factor]."""
    table = [scenes.factors(row) for row in ROWS]
    return list(table[0]), np.array([list(factors.values()) for factors in table], dtype=float)


def words(caption: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", caption)


def test_pictures_are_the_same_on_every_machine():
    data = b"".join(scenes.picture(row).tobytes() for row in range(200))
    assert hashlib.sha256(data).hexdigest() == PICTURES


def test_captions_are_the_same_on_every_machine():
    text = "\n".join(caption for row in range(200) for caption in scenes.captions(row))
    assert hashlib.sha256(text.encode()).hexdigest() == CAPTIONS


def test_a_picture_is_rgb_of_32_pixels_and_its_bytes_are_those_that_encoders_train_on():
    picture = scenes.picture(3)
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    np.testing.assert_array_equal(np.asarray(picture), scenes.pixels(3))


def test_a_row_does_not_depend_on_what_was_drawn_before():
    first = scenes.scene(7), scenes.captions(7)
    for row in (9_999, 0, 8):
        scenes.pixels(row), scenes.captions(row)
    assert (scenes.scene(7), scenes.captions(7)) == first


def test_rows_and_seeds_differ():
    pictures = {scenes.picture(row).tobytes() for row in range(500)}
    assert len(pictures) > 495  # 500 draws among some 10^6 pictures of one thing
    assert not pictures & {scenes.picture(row, scenes.TRAINING_SEED).tobytes() for row in range(100)}


def test_a_hand_drawn_scene_has_the_colours_asked_for_where_they_were_asked_for():
    thing = things.Thing("square", "red", "large", "top right", 0, (0, 0))
    canvas = drawing.draw(things.Scene((thing,), None, "neutral", "plain"))
    assert tuple(canvas[8, 24]) == things.COLOURS["red"]
    painted = (canvas != drawing.GREY).any(-1)
    assert painted.sum() == 12 * 12  # 10.5 pixels a side: the outermost are painted in part
    assert painted[:16, 16:].sum() == painted.sum()


@pytest.mark.parametrize("radius", drawing.RADIUS.values())
def test_a_disc_covers_its_area(radius):
    area = drawing._coverage("disc", radius).sum() / drawing.FINE**2
    assert area == pytest.approx(np.pi * radius**2, rel=0.02)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("count=1", 0.60),
        ("count=2", 0.35),
        ("count=3", 0.05),
        ("arrangement=", 0.35 / 2),
        ("relation=", 0.35 / 4),
        ("background=", 1 / 4),
        ("texture=", 1 / 4),
        ("style=", 1 / 4),
        ("position=", (0.60 + 0.35 * 2 + 0.05 * 3) / 4),
        ("shape=", 0.60 / 6 + 0.35 * (1 - (5 / 6) ** 2) + 0.05 * (1 - (5 / 6) ** 3)),
        ("colour=", 0.60 / 8 + 0.35 * (1 - (7 / 8) ** 2) + 0.05 * (1 - (7 / 8) ** 3)),
        ("size=", 0.60 / 2 + 0.35 * (1 - 1 / 4) + 0.05 * (1 - 1 / 8)),
    ],
)
def test_factors_are_as_frequent_as_they_were_planted(planted, prefix, expected):
    names, table = planted
    seen = table[:, [name.startswith(prefix) for name in names]].mean(0)
    assert len(seen) > 0
    assert abs(seen - expected).max() < 4 * np.sqrt(expected * (1 - expected) / len(table))


def test_what_is_in_one_side_only_is_independent_of_all_else(planted):
    names, table = planted
    group = np.array([name.split("=")[0] for name in names])
    alone = [name.startswith(scenes.IMAGE_ONLY + scenes.TEXT_ONLY) for name in names]
    correlation = np.corrcoef(table.T)
    strangers = correlation[alone][group[alone][:, None] != group]
    assert abs(strangers).max() < 4.5 / np.sqrt(len(table))


def test_captions_know_nothing_of_the_ground_and_pictures_nothing_of_the_style():
    told = {word for row in range(500) for caption in scenes.captions(row) for word in words(caption)}
    assert not told & {*things.BACKGROUNDS, *things.TEXTURES}
    by_caption = [scenes.factors(11, caption) for caption in range(5)]
    differing = {name for name in by_caption[0] if len({factors[name] for factors in by_caption}) > 1}
    assert differing
    assert all(name.startswith(scenes.BY_CAPTION) for name in differing)


def meant(words_said: list[str], table: dict) -> set[str]:
    return {value for value, synonyms in table.items() for word in synonyms if word in words_said}


@pytest.mark.parametrize("caption", range(5))
def test_captions_are_true(caption):
    for row in range(200):
        text, shown = scenes.captions(row)[caption], scenes.scene(row).things
        said, factors = words(text), scenes.factors(row, caption)
        assert meant(said, things.SHAPES) == {thing.shape for thing in shown}
        assert meant(said, things.SIZES) == {thing.size for thing in shown}
        assert {word for word in said if word in things.COLOURS} == {thing.colour for thing in shown}
        assert ("three" in said) == factors["count=3"]
        if len(shown) == 1:
            rows, columns = meant(said, telling.ROW_WORDS), {"left", "right"} & set(said)
            assert factors[f"position={rows.pop()} {columns.pop()}"]
        (style,) = (name for name in telling.STYLES if factors[f"style={name}"])
        assert text.startswith(telling.STYLES[style])


def test_the_thing_named_first_stands_where_the_caption_says():
    checked = 0
    for row in range(200):
        for number, text in enumerate(scenes.captions(row)):
            factors = scenes.factors(row, number)
            relation = [name for name in telling.RELATIONS if factors[f"relation={name}"]]
            if not relation:
                continue
            spoken = next(words for words in telling.RELATIONS[relation[0]][::-1] if f" {words} a " in text)
            first, second = text.split(f" {spoken} a ")
            first, second = (where(part, scenes.scene(row).things) for part in (first, second))
            assert stands(first, relation[0], second)
            checked += 1
    assert checked > 250


def where(part: str, shown) -> list[tuple[int, int]]:
    """Row and column of every thing that fits what a part of a caption says of its colour and shape."""
    said = words(part)
    fitting = [thing for thing in shown if thing.colour in said and thing.shape in meant(said, things.SHAPES)]
    return [things.POSITIONS[thing.position] for thing in fitting]


def stands(first, relation: str, second) -> bool:
    down, right = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}[relation]
    return any((a[0] - b[0], a[1] - b[1]) == (down, right) for a in first for b in second)


def test_the_vocabulary_is_exactly_what_captions_say():
    said = {word for row in range(1_000) for caption in scenes.captions(row) for word in words(caption)}
    assert said == {*telling.WORDS, *telling.PUNCTUATION}
    assert len(telling.WORDS) == 49


# ---- the committed encoders


def test_the_script_writes_where_the_committed_encoders_are():
    assert train_encoders.WEIGHTS == ENCODERS
    assert {folder.name for folder in ENCODERS.iterdir()} == train_encoders.RECIPES.keys()


def test_encoders_are_small_half_precision_files():
    files = [file for file in ENCODERS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    from safetensors import safe_open

    for file in ENCODERS.rglob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_tokenizers_know_every_word_and_end_with_the_highest_id(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ENCODERS / name)
    texts = [caption for row in range(300) for caption in scenes.captions(row)]
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:-1]).split() == words(text)
        assert ids[-1] == len(tokenizer) - 1 == max(ids)
    assert tokenizer.pad_token_id == 0


def test_clip_loads_as_open_clip_loads_anything_and_pools_the_end_of_text():
    model, _, tokenizer = probe.load_clip(ENCODERS / "clip")
    ids = tokenizer([scenes.captions(row)[0] for row in range(50)])
    assert ids.shape == (50, lessons.CONTEXT)
    assert len(model.visual.transformer.resblocks) == len(model.transformer.resblocks) == 3
    hidden = probe.last_block(model.transformer.resblocks, lambda: model.encode_text(ids)).detach()
    assert (hidden[:, 0] == hidden[0, 0]).all()  # causal: the first token has seen no caption
    assert hidden[range(50), ids.argmax(-1)].std(0).min() > 0


def test_clip_finds_the_caption_of_a_picture():
    image, text = probe.embeddings(ENCODERS / "clip", range(5_000, 5_200))
    assert probe.retrieval(image, text) > 0.95
    assert probe.retrieval(image, np.roll(text, 1, axis=0)) < 0.2


def test_retrieval_by_hand():
    image, text = np.eye(3), np.array([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    assert probe.retrieval(image, text, within=1) == pytest.approx(1 / 3)


def test_auc_by_hand():
    score, truth = np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]], dtype=bool)
    assert probe.auc(score, truth) == pytest.approx([0.75])


@pytest.mark.parametrize(
    ("name", "group", "at_least"),
    [
        ("vit", "shape", 0.97),
        ("vit", "colour", 0.90),
        ("dino", "colour", 0.93),
        ("dino", "background", 0.90),
        ("bert", "shape", 0.97),
        ("bert", "position", 0.95),
        ("bert", "style", 0.97),
    ],
)
def test_encoders_know_what_they_were_trained_for(probed, name, group, at_least):
    assert probed(name)[group] > at_least


@pytest.fixture(scope="module")
def probed():
    """The probe scores of an encoder on a small sample, by name."""
    known = {}

    def scores(name: str) -> dict[str, float]:
        if name not in known:
            known[name] = probe.probe(name, ENCODERS / name, 1_200, 400)[name]
        return known[name]

    return scores
