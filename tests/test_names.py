"""Names of features: known answers of words, of correlations, of what chance names, and a person's labels.csv."""

import numpy as np
import pytest
import scipy.sparse

from showing import names, words
from toyworld import scenes, telling, things

ROWS = 1000


@pytest.fixture(scope="module")
def toy():
    """The words of the toy world's first captions."""
    return words.vocabulary([scenes.captions(row)[:1] for row in range(ROWS)])


def keys(caption):  # words first
    found = [key for key, _ in words.terms(words.splitter([caption])(caption))]
    return sorted(found, key=lambda key: " " in key)


def test_the_forms_of_a_word_are_one_family_and_other_words_are_not():
    assert len({words.family(word) for word in ("ride", "rides", "riding", "rode", "ridden")}) == 1
    assert words.family("men") == words.family("man") == words.family("man's")
    assert words.family("rider") != words.family("ride")
    assert words.family("left") != words.family("leave")  # a place, not a verb's past
    assert words.family("Ähren".lower()) == "ähren"
    assert words.family("рыбы") == "рыбы"  # no English stem of what is not Latin


def test_phrases_are_of_adjacent_words_and_no_article_is_at_their_edge():
    assert keys("a red box at the top") == ["a", "red", "box", "at", "the", "top", "red box"]
    assert keys("dogs, cats") == ["dog", "cat"]  # not "dog cat": a comma is between
    assert keys("a close-up of snow_men") == ["a", "close", "up", "of", "snow", "man", "close up", "snow man"]
    assert keys("2 bananas ... 3d!") == ["2", "banana", "3d", "2 banana"]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("כלב שחור רץ", ["כלב", "כלב שחור", "שחור", "שחור רץ", "רץ"]),
        ("हिन्दी में", ["हिन्दी", "हिन्दी में", "में"]),  # vowel signs belong to their word
        ("黒い犬", ["黒", "黒い", "い", "い犬", "犬"]),
        ("cafe\u0301", ["caf\u00e9"]),
    ],
)
def test_captions_in_other_languages_are_split_into_words(caption, found):
    vocabulary = words.vocabulary([[caption], [caption]], fewest=2)
    assert sorted(vocabulary.shown) == sorted(found)


def test_a_row_holds_what_any_of_its_captions_holds_and_no_phrase_crosses_captions():
    vocabulary = words.vocabulary([["red dog", "dog house"], ["red", "dog house"]], fewest=1)
    dense = dict(zip(vocabulary.shown, vocabulary.presence.toarray().T.tolist(), strict=True))
    assert dense == {"red": [1, 1], "dog": [1, 1], "house": [1, 1], "red dog": [1, 0], "dog house": [1, 1]}
    place = vocabulary.shown.index("red dog")
    assert [vocabulary.shown[part] for part in vocabulary.parts[place]] == ["red", "dog"]


def test_a_family_is_shown_by_its_commonest_forms_and_counts_by_rows():
    captions = [["she rides"], ["he rides, he rode", "he rides"], ["ride"]] + [["riding"]] * 3 + [[""]]
    vocabulary = words.vocabulary(captions, fewest=6)
    assert vocabulary.shown == ["rides, riding"]  # as common as each other; "ride" and "rode" are third
    assert vocabulary.presence.sum() == 6
    assert words.vocabulary(captions, fewest=7).shown == []


@pytest.mark.parametrize("captions", [[], [[""], ["…"]], [[]]])
def test_captions_without_a_word_give_no_names(captions):
    vocabulary = words.vocabulary(captions)
    assert vocabulary.shown == []
    assert (
        names.described(scipy.sparse.csr_array(np.ones((len(captions), 2))), vocabulary)
        == [names.Named([], 0, 0)] * 2
    )


def test_a_caption_of_ten_thousand_characters_counts_like_any_other_and_is_shown_short():
    long = "x" * 10_000
    vocabulary = words.vocabulary([[f"{long} dog " + "very " * 2000]] * 3)
    assert "dog" in vocabulary.shown
    assert max(map(len, vocabulary.shown)) <= 2 * words.LONGEST + 2
    assert vocabulary.presence.max() == 1


def test_r_is_pearsons_of_activation_and_presence(toy):
    random = np.random.default_rng(3)
    codes = random.exponential(size=(ROWS, 5)) * (random.random((ROWS, 5)) < 0.3)
    codes[:, 4] = 0
    dense = toy.presence.toarray()
    for feature, found in enumerate(names.described(scipy.sparse.csr_array(codes), toy)):
        assert found.n_top == min(100, np.count_nonzero(codes[:, feature]))
        highest = np.argsort(-codes[:, feature], kind="stable")[: found.n_top]
        for word, r, of_top, share in found.words:
            present = dense[:, toy.shown.index(word)]
            assert r == pytest.approx(np.corrcoef(codes[:, feature], present)[0, 1], abs=1e-9)
            assert of_top == present[highest].sum()
            assert share == pytest.approx(present.mean())
    assert (found.words, found.name) == ([], "")  # the dead feature


def test_a_feature_of_a_planted_factor_is_named_by_one_of_its_synonyms(toy):
    grouped = {  # here, never in the product
        "shape": things.SHAPES,
        "size": things.SIZES,
        "colour": {colour: (colour,) for colour in things.COLOURS},
        "position": {
            f"{row} {column}": {
                column,
                *telling.ROW_WORDS[row],
                *(f"{word} {column}" for word in telling.ROW_WORDS[row]),
            }
            for row, column in map(str.split, things.POSITIONS)
        },
    }
    planted = {f"{group}={value}": told for group, table in grouped.items() for value, told in table.items()}
    random = np.random.default_rng(5)
    truth = np.array([[scenes.factors(row)[factor] for factor in planted] for row in range(ROWS)])
    codes = truth * random.exponential(1, truth.shape) + 0.3 * random.exponential(1, truth.shape) * (
        random.random(truth.shape) < 0.1
    )
    for found, synonyms in zip(
        names.described(scipy.sparse.csr_array(codes), toy), planted.values(), strict=True
    ):
        assert found.name in synonyms
        assert found.r > found.floor


def test_features_of_pure_noise_have_no_word(toy):
    random = np.random.default_rng(7)
    noise = random.exponential(size=(ROWS, 300)) * (
        random.random((ROWS, 300)) < random.uniform(0.01, 0.5, 300)
    )
    found = names.described(scipy.sparse.csr_array(noise), toy)
    assert sum(bool(one.name) for one in found) <= 9  # 3 by chance
    assert all(one.words and one.floor > 0 for one in found)  # told all the same, beside the floor


def test_a_phrase_is_told_where_it_adds_to_its_words():
    captions = [["red dog"], ["red cat"], ["blue dog"], ["blue cat"]] * 25
    both = np.array([1.0, 0, 0, 0] * 25)
    codes = scipy.sparse.csr_array(np.stack([both, np.array([1.0, 1, 0, 0] * 25)], axis=1))
    phrase, word = names.described(codes, words.vocabulary(captions))
    assert [one.word for one in phrase.words] == ["red dog", "dog", "red"]
    assert [one.word for one in word.words] == ["red"]  # "red dog" and "red cat" say less than "red"
    assert word.words[0] == names.Word("red", pytest.approx(1), 50, 0.5)


def test_names_do_not_hang_on_the_blocks(toy, monkeypatch):
    random = np.random.default_rng(11)
    codes = scipy.sparse.csr_array(random.exponential(size=(ROWS, 40)) * (random.random((ROWS, 40)) < 0.2))
    whole = names.described(codes, toy)
    monkeypatch.setattr(names, "CELLS", 3 * len(toy.shown))
    assert names.described(codes, toy) == whole
